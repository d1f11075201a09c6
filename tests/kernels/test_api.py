"""attend, weights and explain: every kernel is held to the reference and to the plain mechanism."""

import numpy as np
import pytest
import torch

import headway
from bound import arrays, close_enough, outcome
from engines import ENGINES
from headway.kernels.api import KERNELS
from headway.kernels.cases import CASES
from headway.parts.masks import Mask, causal, documents, padding, window
from headway.parts.normalizers import sparsemax

FAST = [name for name in KERNELS if name not in ("plain", "triton")]  # for that: test_triton.py
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}

MASKS = {
    "none": lambda: None,
    "causal": lambda: causal,
    "window and padding": lambda: window(3) & padding(torch.tensor([2, 5])),
    "documents": lambda: documents(torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]])),
    "a head alone": lambda: Mask(lambda b, h, q, k: (h != 1) | (k == 0)),
    "array": lambda: torch.tensor(np.random.default_rng(4).random((2, 1, 5, 7)) > 0.5),
    "nobody": lambda: torch.zeros(5, 7, dtype=torch.bool),
}


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fast_kernels_are_as_right_as_the_plain_one(kernel, dtype, case):
    kind = DTYPES[dtype]
    low = arrays(case, kind)
    exact = outcome(
        [x.detach().double().requires_grad_() for x in low], kernel="plain", **case.options
    )
    found = outcome(low, kernel=kernel, **case.options)
    plain = outcome(low, kernel="plain", **case.options)
    close_enough(found, plain, exact, torch.finfo(kind).eps)


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("bias", [None, "numbers", "with -inf"])
@pytest.mark.parametrize("offset", [None, 0, "rows"])
def test_fast_kernels_know_every_mask_and_bias(kernel, name, bias, offset):
    leaves = arrays(CASES["cross"])
    options = {
        "mask": MASKS[name](),
        "offset": torch.tensor([1, -3]) if offset == "rows" else offset,
    }
    if bias is not None:
        options["bias"] = torch.randn(3, 5, 7, dtype=torch.float64)
        if bias == "with -inf":
            options["bias"][:, 1:3, 2:] = -torch.inf
            options["bias"][:, 4] = -torch.inf
    found, plain = (outcome(leaves, kernel=k, **options) for k in (kernel, "plain"))
    for one, other in zip(found, plain, strict=True):
        assert one.isfinite().all()
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", FAST)
def test_gradient_of_the_bias(kernel):
    leaves = arrays(CASES["cross"])
    found = []
    for name in (kernel, "plain"):
        bias = torch.linspace(-1, 1, 105, dtype=torch.float64).reshape(3, 5, 7)
        bias[1, 2, 3] = -torch.inf
        bias.requires_grad_()
        headway.attend(*leaves, bias=bias, causal=True, kernel=name).square().sum().backward()
        found.append(bias.grad)
    assert found[0].isfinite().all()
    assert torch.allclose(*found, rtol=0, atol=1e-12)


def test_sugar_is_the_mask():
    q, k, v = (x.detach().numpy() for x in arrays(CASES["window"]))
    keep = np.random.default_rng(0).random((7, 7)) > 0.3
    sugar = headway.attend(q, k, v, mask=keep, causal=True, window=3)
    assert np.array_equal(sugar, headway.attend(q, k, v, mask=causal & window(3) & keep))


@pytest.mark.parametrize("engine", ENGINES)
def test_explain_says_what_runs_and_attend_runs_it(engine):
    leaves = [ENGINES[engine].array(x.detach().numpy()) for x in arrays(CASES["causal"])]
    told = headway.explain(*leaves, causal=True)
    assert told.chosen == ("sdpa" if engine == "torch" else "plain")
    chosen = headway.attend(*leaves, causal=True)
    named = headway.attend(*leaves, causal=True, kernel=told.chosen)
    assert np.array_equal(ENGINES[engine].numpy(chosen), ENGINES[engine].numpy(named))
    for name, reason in told.refusals.items():
        with pytest.raises(headway.Unsupported, match=reason):
            headway.attend(*leaves, causal=True, kernel=name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"softcap": 2.0}, "no softcap"),
        ({"normalizer": sparsemax}, "softmax only"),
        ({"dropout": 0.5, "seed": 1}, "no seeded dropout"),
    ],
)
def test_sdpa_refuses_what_it_cannot_do_and_plain_takes_over(options, reason):
    leaves = arrays(CASES["self"])
    told = headway.explain(*leaves, **options)
    assert told.chosen == "plain"
    assert reason in told.refusals["sdpa"]
    assert str(told).splitlines()[0].startswith("plain runs: by rule")
    assert f"sdpa {told.refusals['sdpa']}" in str(told).splitlines()
    with pytest.raises(headway.Unsupported, match=reason):
        headway.attend(*leaves, kernel="sdpa", **options)
    assert headway.attend(*leaves, **options).isfinite().all()


def test_an_unknown_kernel_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'plain'"):
        headway.attend(*arrays(CASES["self"]), kernel="plian")


def test_dropout_without_a_seed_or_out_of_range_is_refused():
    with pytest.raises(ValueError, match="needs a seed"):
        headway.attend(*arrays(CASES["self"]), dropout=0.1)
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="share from 0"):
            headway.attend(*arrays(CASES["self"]), dropout=rate, seed=1)


def test_weights_are_those_that_attend_uses():
    q, k, v = arrays(CASES["grouped"])
    found = headway.weights(q, k, causal=True, dropout=0.4, seed=(1, 2))
    spread = v.repeat_interleave(3, dim=1)
    context = headway.attend(q, k, v, causal=True, dropout=0.4, seed=(1, 2))
    assert torch.allclose(found @ spread, context, rtol=0, atol=1e-14)
    assert torch.allclose(headway.weights(q, k, causal=True).sum(-1), torch.ones(2, 6, 5).double())
