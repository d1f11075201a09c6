"""Tests of `triton` on a GPU, or in Triton's interpreter, mostly with several small blocks."""

import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import headway
from bound import close_enough
from headway.attention.kernels.cases import CASES, Case
from headway.attention.masks import Band, Mask, causal, padding

if find_spec("triton") is None:
    pytest.skip("triton does not install here", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":
        # Triton reads this variable on import and for each kernel. It is not set for all tests,
        # because those of the doctor would take minutes.
        assert "triton" not in sys.modules, "too late for Triton's interpreter"
        patch.setenv("TRITON_INTERPRET", "1")
    import triton
    import triton.language as tl

    import headway.attention.kernels.triton as front
    from headway.attention.kernels import triton_flash


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def _small_blocks(monkeypatch):
    monkeypatch.setattr(triton_flash, "blocks", lambda dim, size: [(16, 32), (32, 16)])


def arrays(case, dtype):
    r = np.random.default_rng(3)
    made = [torch.tensor(r.normal(size=s), dtype=dtype, device=DEVICE) for s in case.shapes]
    return [x.requires_grad_() for x in made]


def outcome(leaves, **options):
    """The output and all gradients, in float64."""
    context = headway.attend(*leaves, **options)
    weight = torch.cos(torch.arange(context.numel())).reshape(context.shape).to(context)
    gradients = torch.autograd.grad((context * weight).sum(), leaves)
    return [item.detach().double() for item in (context, *gradients)]


def hold(case, dtype=torch.float32, **options):
    low = arrays(case, dtype)
    exact = [x.detach().double().requires_grad_() for x in low]
    output = outcome(low, kernel="triton", **options)
    plain = outcome(low, kernel="plain", **options)
    assert all(x.isfinite().all() for x in output)
    close_enough(output, plain, outcome(exact, kernel="plain", **options), torch.finfo(dtype).eps)
    return output


# The remaining cases are covered by these or by OPTIONS.
@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(
    "name", ["cross", "cached", "one query", "more queries", "grouped", "window", "two batch axes"]
)
def test_errors_are_as_small_as_those_of_plain(name):
    hold(CASES[name], **CASES[name].options)


# Three blocks of queries by two of keys in the forward pass, two by three in the backward pass.
SEVERAL = Case((), 2, 1, 37, 45, 5, 20, {})
AROUND = Mask(
    lambda b, h, q, k: (q - k >= -11) & (q - k <= 17), "around", band=Band(least=-11, most=17)
)
OPTIONS = {
    "complete": {},
    "causal": {"causal": True},
    "causal, top left": {"causal": True, "offset": 0},
    "before the first key": {"causal": True, "offset": -20},
    "beyond the last key": {"window": 9, "offset": 30},
    "around": {"mask": AROUND},
    "softcap": {"causal": True, "softcap": 0.7},
    "softcap, hardly": {"softcap": 50.0},
    "dropout": {"dropout": 0.3, "seed": (3, torch.tensor(4, device=DEVICE)), "offset": 3},
    "a slice of a batch": {"dropout": 0.3, "seed": 1, "batch_offset": 7},
    "everything": {
        **{"causal": True, "window": 21, "softcap": 2.0, "scale": 0.8},
        **{"dropout": 0.2, "seed": -5},
    },
}


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_blocks_make_the_whole(options):
    hold(SEVERAL, **options)


HALVES = [torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision(dtype):
    hold(SEVERAL, dtype, **OPTIONS["everything"])


def test_the_default_block_sizes():
    """One block of the default size covers the whole case."""
    hold(SEVERAL, **OPTIONS["everything"])


@pytest.mark.usefixtures("_small_blocks")
def test_dead_rows_are_zero():
    assert all((x == 0).all() for x in hold(CASES["cross"], window=3, offset=200))
    context, *gradients = hold(SEVERAL, causal=True, offset=-20)
    for x in (context, gradients[0]):
        assert (x[:, :20] == 0).all()
        assert (x[:, 21:].abs().amax(-1) > 0).all()
    for x in gradients[1:]:
        assert (x[:, 17:] == 0).all()
        assert (x[:, :17].abs().amax(-1) > 0).all()


@pytest.mark.usefixtures("_small_blocks")
def test_drops_the_same_cells():
    q, k, _ = (x.detach() for x in arrays(SEVERAL, torch.float32))
    values = torch.eye(45, device=DEVICE)[None]  # so that the context is the weights
    options = {"causal": True, "offset": 2, "dropout": 0.4, "seed": (1, 2**40 + 3)}
    output = headway.attend(q, k, values, kernel="triton", **options)
    assert torch.equal(output == 0, headway.attention_weights(q, k, **options) == 0)


@pytest.mark.usefixtures("_small_blocks")
def test_any_strides():
    made = arrays(Case((2,), 3, 1, 5, 7, 4, 6, {}), torch.float32)
    q, k, v = (x.detach() for x in made)
    v[1] = v[0]
    wide = torch.stack([k, -k], dim=-1).flatten(-2)  # every second number belongs to the keys
    ways = {
        "contiguous": (q, k, v),
        "tokens before heads": tuple(
            x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)
        ),
        "strided, expanded": (q.mT.contiguous().mT, wide[..., ::2], v[:1].expand_as(v)),
    }
    output = {}
    for name, inputs in ways.items():
        leaves = [x.detach().requires_grad_() for x in inputs]
        context = headway.attend(*leaves, causal=True, kernel="triton")
        # The gradient of a sum is one number, expanded.
        output[name] = [context, *torch.autograd.grad(context.sum(), leaves)]
    for name in ways:
        assert all(map(torch.equal, output[name], output["contiguous"])), name
    assert not torch.equal(output["contiguous"][0][0], output["contiguous"][0][1])


def _borders(out, first, length, least, most, OWN: tl.constexpr, OTHER: tl.constexpr):
    begin, complete, cut, end = triton_flash._borders(first, length, least, most, OWN, OTHER)
    tl.store(out, begin)
    tl.store(out + 1, complete)
    tl.store(out + 2, cut)
    tl.store(out + 3, end)


@pytest.mark.slow  # allocates 4 GiB of virtual memory
def test_more_elements_than_32_bits_count():
    room = torch.empty(2**31 + 64, dtype=torch.float16, device=DEVICE)
    inputs = [room.as_strided((3, 1, 5, 4), (2**30, 64, 4, 1), start) for start in (0, 20, 40)]
    for x in inputs:
        x.copy_(torch.randn(3, 1, 5, 4))
    output, near = (
        headway.attend(*item, kernel="triton") for item in (inputs, [x.clone() for x in inputs])
    )
    assert torch.equal(output, near)


def test_only_necessary_blocks_are_computed_and_masked():
    OWN, OTHER, length = 8, 4, 21
    kernel = triton.jit(_borders)
    out = torch.empty(4, dtype=torch.int32, device=DEVICE)
    starts, other = np.arange(0, 24, OTHER), np.arange(24)
    seen = set()
    for first, least, most in product((0, 8, 16), range(-40, 40, 7), range(-39, 40, 6)):
        if least > most:
            continue
        kernel[1,](out, first, length, least, most, OWN, OTHER)
        begin, complete, cut, end = out.tolist()
        distance = np.arange(first, first + OWN)[:, None] - other
        allowed = ((distance >= least) & (distance <= most)).reshape(OWN, 6, OTHER)
        some = allowed.any((0, 2))
        every = (allowed & (other < length).reshape(6, OTHER)).all((0, 2))
        assert list(range(begin, end, OTHER)) == starts[some].tolist()
        assert list(range(complete, cut, OTHER)) == starts[every].tolist()
        # So that the three loops meet each block once.
        assert begin <= complete <= cut <= max(begin, end)
        assert complete % OTHER == cut % OTHER == 0 or complete == cut == max(begin, end)
        seen.add((some.any(), every.any(), (some & ~every)[1:-1].any()))
    assert len(seen) == 5, seen


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the NaNs
@pytest.mark.usefixtures("_small_blocks")
def test_blocks_outside_the_band_are_not_read():
    made = arrays(Case((), 1, 1, 64, 64, 4, 5, {}), torch.float32)
    q, k, v = (x.detach() for x in made)
    # Queries from 32 on see keys from 29 on; the blocks of those begin at 16 at the earliest.
    k[:, :16], v[:, :16], q[:, :32] = torch.nan, torch.nan, torch.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    context = headway.attend(*leaves, window=4, kernel="triton")
    last = context[:, 48:]
    gradients = torch.autograd.grad(last.sum(), leaves)
    for x in (last, *(gradient[:, 32:] for gradient in gradients)):
        assert x.isfinite().all()


REFUSED = {
    "supports PyTorch tensors only": (lambda x: x.cpu().numpy(), {}),
    "supports float32, bfloat16 and float16 only": (lambda x: x.double(), {}),
    "supports heads of up to 256 features": (lambda x: x.repeat(1, 1, 65), {}),
    "the option normalizer": (lambda x: x, {"normalizer": lambda scores, allowed: scores}),
    "the option bias": (lambda x: x, {"bias": torch.zeros(5, 5)}),
    "supports only masks that are bands": (
        lambda x: x,
        {"mask": causal & padding(torch.tensor([3]))},
    ),
    "supports only one offset for all batch rows": (lambda x: x, {"offset": torch.tensor([1])}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(reason):
    change, options = REFUSED[reason]
    x = change(torch.randn(2, 5, 4, device=DEVICE))
    with pytest.raises(headway.Unsupported, match=reason):
        headway.attend(x, x, x, kernel="triton", **options)


def test_refuses_what_it_cannot_run_on(monkeypatch):
    x = torch.randn(2, 5, 4)
    with pytest.raises(headway.Unsupported, match="values of one dtype"):
        headway.attend(x.to(DEVICE), x.to(DEVICE), x.half().to(DEVICE), kernel="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(headway.Unsupported, match="not support bfloat16 in Triton's interpreter"):
        headway.attend(*[x.bfloat16()] * 3, kernel="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(headway.Unsupported, match="needs CUDA"):
        headway.attend(x, x, x, kernel="triton")
    monkeypatch.setattr(front, "_INSTALLED", False)
    with pytest.raises(headway.Unsupported, match="needs the triton package"):
        headway.attend(x, x, x, kernel="triton")


def test_dropout_without_a_seed_or_out_of_range_is_refused():
    x = torch.randn(2, 5, 4, device=DEVICE)
    with pytest.raises(ValueError, match="needs a seed"):
        headway.attend(x, x, x, dropout=0.1, kernel="triton")
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        headway.attend(x, x, x, dropout=1.0, seed=1, kernel="triton")


def test_the_custom_operator_passes_opcheck():
    leaves = arrays(Case((1,), 2, 1, 3, 5, 4, 6, {}), torch.float32)
    seed = torch.tensor([3], dtype=torch.int32, device=DEVICE)
    # tests/torch/compiled.py tests it under torch.compile.
    which = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs = (*leaves, seed, [-5, 1, 2, 0], 0.5, 2.0, 0.3)
    torch.library.opcheck(triton_flash.flash, inputs, test_utils=which)


def test_there_is_no_second_derivative():
    x = torch.randn(1, 5, 4, device=DEVICE, requires_grad=True)
    context = headway.attend(x, x, x, kernel="triton")
    (gradient,) = torch.autograd.grad(context.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("one", marks=pytest.mark.slow),
        pytest.param("table", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_compiles_for_other_gpus(what, tmp_path):
    """Triton's compiler accepts the kernels, and they fit into shared memory."""
    script = Path(__file__).with_name("triton_ahead.py")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), what]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stdout == "compiled\n", done.stderr[-3000:]
