"""Tests of attend, attention_weights and explain: every kernel against the formula in float64."""

import re
from contextlib import contextmanager
from itertools import product

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch

import headway
from bound import close_enough
from engines import ENGINES
from headway.attention.arrays import namespace
from headway.attention.kernels import tuning
from headway.attention.kernels.cases import CASES
from headway.attention.kernels.flex import block_mask
from headway.attention.kernels.kernel import refusal
from headway.attention.kernels.matrix import matrix
from headway.attention.kernels.table import KERNELS
from headway.attention.masks import Mask, causal, documents, padding, window
from headway.attention.normalizers import sparsemax
from headway.attention.options import spec_from
from headway.attention.spec import DEFAULT

DTYPES = {"float64": np.float64, "float32": np.float32, "bfloat16": jnp.bfloat16}
WIDE = {name for name, case in CASES.items() if case.d_v != case.d_k}
ONE_WIDTH = {f"{name}, one width": CASES[name]._replace(d_v=CASES[name].d_k) for name in WIDE}

# The engines on which each kernel runs on a CPU, and what it refuses there: cases, cases with
# d_v = d_k ("one width"), dtypes, options. Kernels that are not listed refuse everything.
BEYOND_SOFTMAX = {"softcap", "normalizer", "dropout", "sink_logits"}
REFUSED = {
    ("sdpa", "torch"): BEYOND_SOFTMAX,
    ("plain", "numpy"): set(),
    ("plain", "torch"): set(),
    ("plain", "jax"): set(),
    ("stacked", "numpy"): set(),
    ("stacked", "torch"): set(),
    ("stacked", "jax"): set(),
    ("einsum", "numpy"): set(),
    ("einsum", "torch"): set(),
    ("einsum", "jax"): set(),
    ("tiled", "numpy"): {"normalizer"},
    ("tiled", "torch"): {"normalizer"},
    ("tiled", "jax"): {"normalizer", "bias", "an array for a mask"},
    ("sdpa-math", "torch"): BEYOND_SOFTMAX,
    ("sdpa-flash", "torch"): BEYOND_SOFTMAX
    | WIDE
    | {"no batch, one width", "two batch axes, one width", "gradient of the bias"},
    ("flex", "torch"): {"normalizer", "dropout", "sink_logits", "an array for a mask", "float64"}
    | {"gradient", "gradient of the bias", "24 keys of 16"},
    ("jax", "jax"): BEYOND_SOFTMAX | WIDE | {"float64"},
}
HELD = [pair for pair in REFUSED if pair[0] != "plain"]


def arrays(case, engine="torch", dtype="float64"):
    r = np.random.default_rng(3)
    return [ENGINES[engine].array(r.normal(size=s).astype(DTYPES[dtype])) for s in case.shapes]


@contextmanager
def shapes_unchecked(where):
    """Disable the checks of shapes (conftest.py), which torch.compile does not support in masks."""
    jaxtyping.config.update("jaxtyping_disable", where)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def outcome(kernel, engine, leaves, gradients, **options):
    """The output and, if requested, the gradients of all leaves (the fourth is the bias)."""

    def loss(*leaves):
        bias = {"bias": leaves[3]} if len(leaves) == 4 else {}
        with shapes_unchecked(kernel == "flex"):
            context = headway.attend(*leaves[:3], kernel=kernel, **bias, **options)
        xp = namespace(context)
        weight = np.cos(np.arange(np.prod(context.shape))).reshape(context.shape)
        return xp.sum(xp.astype(context, xp.float64) * ENGINES[engine].array(weight)), context

    output = ()
    if not gradients:
        _, context = loss(*leaves)
    elif engine == "torch":
        leaves = [x.clone().requires_grad_() for x in leaves]
        total, context = loss(*leaves)
        output = torch.autograd.grad(total, leaves)
    else:
        every = tuple(range(len(leaves)))
        output, context = jax.jit(jax.grad(loss, argnums=every, has_aux=True))(*leaves)
    return [ENGINES[engine].numpy(item).astype(np.float64) for item in (context, *output)]


def outcomes(kernel, engine, leaves, options=lambda array: {}):
    """The outcomes of a kernel, of the formula, and of the formula in float64."""
    refused = REFUSED[kernel, engine]
    gradients = engine != "numpy" and "gradient" not in refused
    exactly = [torch.tensor(ENGINES[engine].numpy(x).astype(np.float64)) for x in leaves]
    done = []
    for name, on, inputs in (
        (kernel, engine, leaves),
        ("plain", engine, leaves),
        ("plain", "torch", exactly),
    ):
        given = options(ENGINES[on].array)
        if "gradient of the bias" in refused and len(inputs) == 4:
            *inputs, given["bias"] = inputs
        done.append(outcome(name, on, inputs, gradients, **given))
    return done


def compiles(kernel, engine):
    """Whether each call is compiled, which takes flex seven seconds and JAX one."""
    return kernel == "flex" or engine == "jax"


def parametrize(names, runs, quick):
    """Parametrize a test with runs. Runs that compile are slow tests, except the quick ones."""
    marked = []
    for kernel, engine, *rest in runs:
        slow = compiles(kernel, engine) and rest not in quick
        marked.append(pytest.param(kernel, engine, *rest, marks=[pytest.mark.slow] if slow else []))
    return pytest.mark.parametrize(("kernel", "engine", *names), marked)


def case_runs():
    for (kernel, engine), name, dtype in product(HELD, CASES, DTYPES):
        refused = REFUSED[kernel, engine]
        taken = f"{name}, one width" if name in refused else name
        few = compiles(kernel, engine) and name != "grouped" and dtype != "float32"
        if not few and not refused & {taken, dtype}:
            yield kernel, engine, taken, dtype


@parametrize(
    ["name", "dtype"],
    case_runs(),
    quick=[["grouped", "float32"], ["grouped, one width", "float32"]],
)
def test_errors_of_kernels_are_as_small_as_those_of_plain(kernel, engine, name, dtype):
    case = (CASES | ONE_WIDTH)[name]
    leaves = arrays(case, engine, dtype)
    output, plain, exact = outcomes(kernel, engine, leaves, lambda array: case.options)
    close_enough(output, plain, exact, jnp.finfo(DTYPES[dtype]).eps)


MASKS = {
    "none": lambda array: None,
    "causal": lambda array: causal,
    "window and padding": lambda array: window(3) & padding(array([2, 5])),
    "documents": lambda array: documents(array([[0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]])),
    "a head alone": lambda array: Mask(lambda b, h, q, k: (h != 1) | (k == 0)),
    "array": lambda array: array(np.random.default_rng(4).random((2, 1, 5, 7)) > 0.5),
    "nothing": lambda array: array(np.zeros((5, 7), bool)),
}
BIASES = (None, "numbers", "with -inf")
OFFSETS = (None, 0, "rows")
FEW = (*zip(BIASES, OFFSETS, strict=True), (None, "rows"))  # for kernels that compile each run


def is_in_square(*values):
    """A Latin square: all pairs of two values, in a third of all combinations."""
    options = (tuple(MASKS), BIASES, OFFSETS)
    return sum(map(tuple.index, options, values)) % 3 == 0


def mask_runs():
    for (kernel, engine), mask, bias, offset in product(HELD, MASKS, BIASES, OFFSETS):
        is_taken = (
            (bias, offset) in FEW if compiles(kernel, engine) else is_in_square(mask, bias, offset)
        )
        if not is_taken:
            continue
        refused = REFUSED[kernel, engine]
        array = mask in ("array", "nothing") and "an array for a mask" in refused
        if not array and not (bias and "bias" in refused):
            yield kernel, engine, mask, bias, offset


@parametrize(
    ["mask", "bias", "offset"], mask_runs(), quick=[["window and padding", "with -inf", "rows"]]
)
def test_kernels_support_every_mask_and_bias(kernel, engine, mask, bias, offset):
    dtype = "float32" if "float64" in REFUSED[kernel, engine] else "float64"
    leaves = arrays(ONE_WIDTH["cross, one width"], engine, dtype)
    if bias is not None:
        numbers = np.random.default_rng(5).normal(size=(3, 5, 7)).astype(dtype)
        if bias == "with -inf":
            numbers[:, 1:3, 2:] = -np.inf
            numbers[:, 4] = -np.inf
        leaves.append(ENGINES[engine].array(numbers))

    def options(array):
        return {
            "mask": MASKS[mask](array),
            "offset": array([1, -3]) if offset == "rows" else offset,
        }

    output, plain, exact = outcomes(kernel, engine, leaves, options)
    if dtype == "float32":
        close_enough(output, plain, exact, np.finfo(np.float32).eps)
    else:
        for one, right in zip(output, exact, strict=True):
            assert np.allclose(one, right, rtol=0, atol=1e-12)


def trials(engine):
    """Calls that a kernel may refuse: name, inputs, options."""
    array = ENGINES[engine].array
    for name, case in (CASES | ONE_WIDTH).items():
        yield name, arrays(case, engine, "float32"), case.options
    for dtype in DTYPES:
        yield dtype, arrays(CASES["self"], engine, dtype), {}
    leaves = arrays(CASES["self"], engine, "float32")
    numbers = array(np.ones((5, 5), np.float32))
    yield "bias", leaves, {"bias": numbers}
    yield "an array for a mask", leaves, {"mask": array(np.ones((5, 5), bool))}
    yield "softcap", leaves, {"softcap": 2.0}
    yield "normalizer", leaves, {"normalizer": sparsemax}
    yield "dropout", leaves, {"dropout": 0.5, "seed": 1}
    yield "sink_logits", leaves, {"sink_logits": array(np.ones(3, np.float32))}
    wrong_on_flex = CASES["self"]._replace(keys=24, d_k=16, d_v=16)
    yield "24 keys of 16", arrays(wrong_on_flex, engine, "float32"), {}
    if engine == "torch":
        yield "gradient", [x.clone().requires_grad_() for x in leaves], {}
        yield "gradient of the bias", leaves, {"bias": numbers.clone().requires_grad_()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_refuse_exactly_the_listed_calls(kernel, engine):
    everything = {name for name, *_ in trials(engine)}
    refused = set()
    for name, leaves, options in trials(engine):
        reason = refusal(KERNELS[kernel], *leaves, spec_from(options))
        if reason is not None:
            refused.add(name)
            with pytest.raises(headway.Unsupported, match=f"it {re.escape(reason)}$"):
                headway.attend(*leaves, kernel=kernel, **options)
    assert refused == REFUSED.get((kernel, engine), everything)


@pytest.mark.parametrize(
    ("kernel", "name", "reason"),
    [
        ("jax", "self", "supports JAX arrays only"),
        ("sdpa-cudnn", "self", "has no such backend on cpu"),
        ("sdpa-flash", "cross", "is refused by PyTorch: .* the same last dimension"),
        ("sdpa-flash", "no batch", "is refused by PyTorch: .* 4 dimensional"),
        ("sdpa-flash", "gradient of the bias", "is refused by PyTorch: no reason given"),
        ("sdpa-math", "softcap", "does not support the option softcap"),
        ("flex", "gradient", "has no gradients on a CPU"),
        ("flex", "an array for a mask", "masks of positions only"),
        ("flex", "24 keys of 16", "gives wrong results on a CPU"),
        ("flex", "float64", "float32, bfloat16 and float16 only"),
    ],
)
def test_the_message_of_a_refusal_has_the_reason(kernel, name, reason):
    ((leaves, options),) = ([q, o] for n, q, o in trials("torch") if n == name)
    with pytest.raises(headway.Unsupported, match=reason):
        headway.attend(*leaves, kernel=kernel, **options)


@parametrize([], [pair for pair in HELD if pair[0] in ("stacked", "einsum")], quick=[])
def test_kernels_drop_the_same_cells_and_take_every_option_at_once(kernel, engine):
    r = np.random.default_rng(6)
    bias = r.normal(size=(6, 5, 7))
    bias[1:3, 2] = -np.inf
    array = ENGINES[engine].array
    options = {
        "mask": causal & array(r.random((2, 6, 5, 7)) > 0.3),
        "bias": array(bias),
        "offset": array([2, 1]),
        "softcap": 1.5,
        "normalizer": sparsemax,
        "sink_logits": array(r.normal(size=6)),
        "dropout": 0.4,
        "seed": (1, 2),
    }
    leaves = arrays(CASES["grouped"], engine)
    output, plain = (headway.attend(*leaves, **options, kernel=k) for k in (kernel, "plain"))
    output, plain = ENGINES[engine].numpy(output), ENGINES[engine].numpy(plain)
    assert np.allclose(output, plain, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("kernel", "engine"),
    # One kernel on JAX is enough: `silent` is independent of the engine, and JAX is slow eagerly.
    [*product(["stacked", "einsum", "tiled"], ["numpy", "torch"]), ("tiled", "jax")],
)
def test_a_trace_does_not_record_the_parts_of_a_kernel(kernel, engine):
    leaves = arrays(CASES["grouped"], engine)
    with headway.trace(rows=slice(1, 3)) as steps:
        headway.attend(*leaves, causal=True, kernel=kernel)
    assert steps["context"].shape == (2, 6, 2, 3)
    complete = headway.attention_weights(*leaves[:2], causal=True)
    output, complete = (ENGINES[engine].numpy(x) for x in (steps["weights"], complete[..., 1:3, :]))
    assert np.allclose(output, complete, rtol=0, atol=1e-15)


def test_einsum_does_not_repeat_keys_and_values(monkeypatch):
    leaves = arrays(CASES["grouped"])
    plain = headway.attend(*leaves, kernel="plain")
    monkeypatch.delattr("headway.attention.formula.repeat")
    monkeypatch.delattr("headway.attention.scores.repeat")
    output = headway.attend(*leaves, kernel="einsum")
    assert torch.allclose(output, plain, rtol=0, atol=1e-14)
    with pytest.raises(NameError):
        headway.attend(*leaves, kernel="plain")


def test_a_named_backend_of_sdpa_affects_only_one_call():
    leaves = [x.requires_grad_() for x in arrays(CASES["self"])]
    ran = {
        kernel: "FlashAttention" in headway.attend(*leaves, kernel=kernel).grad_fn.name()
        for kernel in ("sdpa-math", "sdpa-flash", "sdpa")
    }
    assert ran == {"sdpa-math": False, "sdpa-flash": True, "sdpa": True}


def test_kernels_support_any_strides():
    leaves = [x.permute(3, 2, 1, 0).contiguous() for x in arrays(CASES["self"])]
    leaves = [x.permute(3, 2, 1, 0) for x in leaves]
    plain = headway.attend(*leaves, causal=True, kernel="plain")
    for kernel, engine in HELD:
        if engine == "torch" and kernel != "flex":
            output = headway.attend(*leaves, causal=True, kernel=kernel)
            assert torch.allclose(output, plain, rtol=0, atol=1e-14)


def test_a_matrix_has_no_dead_row():
    """Some backends of PyTorch do not give 0 for a dead row, unlike those on a CPU."""
    bias = torch.tensor([[1.0, -torch.inf, 2.0]] * 2 + [[-torch.inf] * 3])
    mask = torch.tensor([[True, False, False], [False, True, False], [True, True, True]])
    x = torch.zeros(2, 3, 4)
    allowed, numbers, alive = matrix(x, x, spec_from({"mask": mask, "bias": bias}))
    assert alive.tolist() == [[[True], [False], [False]]]
    assert allowed.tolist() == [[[True, False, False], [True] * 3, [True] * 3]]
    assert numbers.tolist() == [[[1, -torch.inf, -torch.inf], [1, 0, 2], [0, 0, 0]]]


def test_an_error_of_pytorch_at_run_time_is_unsupported():
    with (
        pytest.warns(UserWarning, match="Flash attention"),
        pytest.raises(headway.Unsupported, match="PyTorch cannot run this call on FLASH"),
    ):
        KERNELS["sdpa-flash"].run(*arrays(CASES["cross"]), DEFAULT)


def test_the_bias_of_a_head_keeps_sdpa_on_its_fast_backend():
    leaves = [x.requires_grad_() for x in arrays(CASES["self"])]
    bias = torch.randn(3, 5, 5, dtype=torch.float64)
    context = headway.attend(*leaves, bias=bias, kernel="sdpa")
    assert "FlashAttention" in context.grad_fn.next_functions[0][0].name()


def test_flex_makes_the_blocks_of_a_mask_once():
    def blocks(mask, offset=None):  # of 128 x 128, three by four of them
        queries, keys = torch.zeros(2, 3, 384, 4), torch.zeros(2, 3, 512, 4)
        return block_mask(queries, keys, spec_from({"mask": mask, "offset": offset}))

    def full(output):
        assert (output.kv_num_blocks == (output.kv_num_blocks > 0)).all()
        return output.full_kv_num_blocks[:, 0].tolist()

    with shapes_unchecked(True):
        assert blocks(None) is None
        assert blocks(causal) is blocks(causal)
        assert blocks(window(129)) is blocks(window(129)) is not blocks(window(130))
        assert blocks(causal).shape == (1, 1, 384, 512)
        assert full(blocks(causal)) == [[1, 2, 3]]
        assert full(blocks(causal, offset=0)) == [[0, 1, 2]]
        assert full(blocks(causal, offset=torch.tensor([0, 128]))) == [[0, 1, 2], [1, 2, 3]]
        lengths = torch.tensor([512, 512])
        kept = padding(lengths)
        assert full(blocks(kept)) == [[4, 4, 4], [4, 4, 4]]
        lengths[0] = 128  # the blocks are made again
        assert blocks(kept) is blocks(kept)
        assert blocks(kept).shape == (2, 3, 384, 512)
        assert full(blocks(kept)) == [[1, 1, 1], [4, 4, 4]]


@pytest.mark.slow
def test_flex_does_not_compile_again_for_the_same_kind_of_mask():
    x, graphs = torch.randn(2, 3, 41, 16), []
    for seed in range(3):
        ids = torch.randint(0, 3, (2, 41), generator=torch.Generator().manual_seed(seed))
        mask = causal & documents(ids)
        with shapes_unchecked(True):
            output = headway.attend(x, x, x, mask=mask, kernel="flex")
        assert torch.allclose(output, headway.attend(x, x, x, mask=mask), atol=1e-6)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]


def test_flex_makes_blocks_anew_for_offsets_that_are_tensors():
    """A freed tensor and a new one may have the same address."""
    mask = Mask(lambda batch, head, query, key: key <= query)
    with shapes_unchecked(True):
        for offsets in ([0, 0], [384, 384], [128, 256], [64, 200]):
            queries, keys = torch.zeros(2, 3, 128, 4), torch.zeros(2, 3, 512, 4)
            spec = spec_from({"mask": mask, "offset": torch.tensor(offsets)})
            blocks = block_mask(queries, keys, spec)
            assert [row[0].item() for row in blocks.full_kv_num_blocks[:, 0]] == [
                (offset + 1) // 128 for offset in offsets
            ]
        queries, keys = torch.zeros(2, 3, 2, 16, 16), torch.zeros(2, 3, 2, 16, 16)
        spec = spec_from({"mask": mask, "offset": torch.tensor([0, 1, 2])})
        assert block_mask(queries, keys, spec).shape == (6, 2, 16, 16)


@pytest.mark.slow
def test_flex_with_one_query_and_many_keys():
    """PyTorch uses another kernel for it, which gives NaN if all rows are dead."""
    r = np.random.default_rng(0)
    leaves = [torch.tensor(r.normal(size=(2, 3, n, 4))).float() for n in (1, 2000, 2000)]
    for lengths in ([700, 0], [0, 0]):
        options = {"mask": padding(torch.tensor(lengths)), "softcap": 1.5}
        with shapes_unchecked(True):
            output = headway.attend(*leaves, **options, kernel="flex")
        plain = headway.attend(*leaves, **options, kernel="plain")
        assert torch.allclose(output, plain, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_failed_compilation_of_flex_is_unsupported():
    leaves = arrays(CASES["self"], dtype="float32")
    with (
        shapes_unchecked(True),
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(headway.Unsupported, match="PyTorch cannot compile flex_attention"),
    ):
        headway.attend(*leaves, kernel="flex", scale=0.123)


def test_jax_on_a_gpu_uses_cudnn_and_without_it_the_next_best(monkeypatch):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16, 8)), jnp.bfloat16)
    expected = headway.attend(x, x, x, causal=True, kernel="jax")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    tuning.forget()
    assert headway.explain(x, x, x, causal=True).chosen == "jax"
    with pytest.warns(UserWarning, match="JAX runs attention without cuDNN: "):
        assert (headway.attend(x, x, x, causal=True) == expected).all()
    asked, library = [], jax.nn.dot_product_attention

    def attention(*arrays, implementation, **options):
        asked.append(implementation)
        return library(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    headway.attend(x, x, x, causal=True)
    headway.attend(*(x.astype("float32") for _ in range(3)), causal=True)
    assert asked == ["cudnn", "xla"]
    monkeypatch.undo()
    tuning.forget()


def test_kernel_jax_runs_without_jit():
    leaves = arrays(CASES["self"], "jax", "float32")
    output = headway.attend(*leaves, causal=True, kernel="jax")
    plain = headway.attend(*leaves, causal=True, kernel="plain")
    assert np.allclose(output, plain, rtol=0, atol=1e-6)


def test_causal_and_window_are_short_for_masks():
    q, k, v = (x.detach().numpy() for x in arrays(CASES["window"]))
    keep = np.random.default_rng(0).random((7, 7)) > 0.3
    short = headway.attend(q, k, v, mask=keep, causal=True, window=3)
    assert np.array_equal(short, headway.attend(q, k, v, mask=causal & window(3) & keep))


@pytest.mark.parametrize("engine", ENGINES)
def test_attend_runs_the_kernel_that_explain_names(engine):
    leaves = [ENGINES[engine].array(x.detach().numpy()) for x in arrays(CASES["causal"])]
    explanation = headway.explain(*leaves, causal=True)
    assert explanation.chosen == ("sdpa" if engine == "torch" else "plain")
    chosen = headway.attend(*leaves, causal=True)
    named = headway.attend(*leaves, causal=True, kernel=explanation.chosen)
    assert np.array_equal(ENGINES[engine].numpy(chosen), ENGINES[engine].numpy(named))
    for name, reason in explanation.refusals.items():
        with pytest.raises(headway.Unsupported, match=re.escape(reason)):
            headway.attend(*leaves, causal=True, kernel=name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"softcap": 2.0}, "the option softcap"),
        ({"normalizer": sparsemax}, "the option normalizer"),
        ({"sink_logits": torch.ones(3)}, "the option sink_logits"),
        ({"dropout": 0.5, "seed": 1}, "the option dropout"),
    ],
)
def test_plain_runs_what_sdpa_refuses(options, reason):
    leaves = arrays(CASES["self"])
    explanation = headway.explain(*leaves, **options)
    assert explanation.chosen == "plain"
    assert reason in explanation.refusals["sdpa"]
    assert str(explanation).splitlines()[0].startswith("plain runs: chosen by a fixed rule")
    assert f"sdpa {explanation.refusals['sdpa']}" in str(explanation).splitlines()
    with pytest.raises(headway.Unsupported, match=reason):
        headway.attend(*leaves, kernel="sdpa", **options)
    assert headway.attend(*leaves, **options).isfinite().all()


def test_an_unknown_kernel_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'plain'"):
        headway.attend(*arrays(CASES["self"]), kernel="plian")


def test_dropout_without_a_seed_or_out_of_range_is_refused():
    with pytest.raises(ValueError, match="needs a seed"):
        headway.attend(*arrays(CASES["self"]), dropout=0.1)
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            headway.attend(*arrays(CASES["self"]), dropout=rate, seed=1)


def test_attention_weights_are_the_weights_of_attend():
    q, k, v = arrays(CASES["grouped"])
    output = headway.attention_weights(q, k, causal=True, dropout=0.4, seed=(1, 2))
    spread = v.repeat_interleave(3, dim=1)
    context = headway.attend(q, k, v, causal=True, dropout=0.4, seed=(1, 2))
    assert torch.allclose(output @ spread, context, rtol=0, atol=1e-14)
    assert torch.allclose(
        headway.attention_weights(q, k, causal=True).sum(-1), torch.ones(2, 6, 5).double()
    )
