"""Tests of the inputs that `attend` accepts and refuses: shapes, values, options, transforms."""

from functools import partial

import numpy as np
import pytest
import torch

import headway
from engines import ENGINES
from gpts import gpt_config
from headway.attention.kernels.kernel import refusal
from headway.attention.kernels.table import KERNELS
from headway.attention.options import spec_from
from headway.attention.spec import DEFAULT
from headway.torch import GPT

# The kernels that run on a CPU without compilation.
PAIRS = [
    *(("plain", engine) for engine in ENGINES),
    *(("stacked", engine) for engine in ENGINES),
    *(("einsum", engine) for engine in ENGINES),
    *(("tiled", engine) for engine in ENGINES),
    *(("sdpa", "torch"), ("sdpa-math", "torch"), ("sdpa-flash", "torch"), ("jax", "jax")),
    *((None, engine) for engine in ENGINES),
]
each_kernel = pytest.mark.parametrize(("kernel", "engine"), PAIRS)
TORCH = [kernel for kernel, engine in PAIRS if engine == "torch"]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attended(kernel, engine, *inputs, **options):
    """The context as a NumPy array; None if a named kernel refuses the call."""
    arrays = [ENGINES[engine].array(x) for x in inputs]
    options = {n: ENGINES[engine].array(o) if n == "bias" else o for n, o in options.items()}
    try:
        return ENGINES[engine].numpy(headway.attend(*arrays, kernel=kernel, **options))
    except headway.Unsupported:
        assert kernel is not None
        return None


@each_kernel
def test_two_dimensions_are_one_head(kernel, engine):
    q, k, v = numbers(5, 4), numbers(7, 4, seed=1), numbers(7, 4, seed=2)
    output = attended(kernel, engine, q, k, v, causal=True)
    one_head = attended("plain", "numpy", q[None], k[None], v[None], causal=True)
    assert output is None or output.shape == (5, 4)
    assert output is None or np.allclose(output, one_head[0], atol=1e-6)
    weights = headway.attention_weights(q, k, causal=True)
    assert weights.shape == (5, 7)
    assert np.allclose(weights @ v, one_head[0], atol=1e-6)


BROADCAST = {
    "as in PyTorch's sample inputs": ((4, 3, 8), (4, 4, 6, 8), (4, 4, 6, 8)),
    "one batch row of keys": ((3, 4, 5, 8), (1, 4, 6, 8), (1, 4, 6, 8)),
    "one head of queries": ((3, 1, 5, 8), (3, 4, 6, 8), (3, 4, 6, 8)),
    "one head of keys, several of values": ((3, 4, 5, 8), (3, 1, 6, 8), (3, 2, 6, 8)),
    "a matrix of queries": ((5, 8), (2, 3, 4, 6, 8), (3, 4, 6, 8)),
    "grouped, keys without a batch": ((3, 4, 5, 8), (2, 6, 8), (2, 6, 8)),
}


@pytest.mark.parametrize(
    ("kernel", "engine"),
    # The shapes are aligned before a kernel is chosen. On PyTorch and NumPy kernels then see
    # strides of 0; JAX has no strides, so that two of its kernels are enough.
    [pair for pair in PAIRS if pair[1] != "jax" or pair[0] in ("plain", "jax")],
)
@pytest.mark.parametrize("shapes", BROADCAST.values(), ids=BROADCAST)
def test_leading_axes_broadcast(kernel, engine, shapes):
    q, k, v = (numbers(*shape, seed=n) for n, shape in enumerate(shapes))
    output = attended(kernel, engine, q, k, v)
    group = max(q.shape[-3] if q.ndim > 2 else 1, 1)
    heads = max(group, k.shape[-3], v.shape[-3])
    wide = [np.repeat(x, heads // x.shape[-3], axis=-3) if x.ndim > 2 else x for x in (q, k, v)]
    scores = np.asarray(wide[0] @ wide[1].mT, np.float64) / 8**0.5
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = weights @ wide[2]
    assert output is None or output.shape == expected.shape
    assert output is None or np.allclose(output, expected, atol=1e-5)


@each_kernel
@pytest.mark.parametrize("axis", ["batch", "heads", "queries", "keys", "d_k", "d_v"])
def test_any_axis_may_be_empty(kernel, engine, axis):
    sizes = {"batch": 2, "heads": 3, "queries": 5, "keys": 6, "d_k": 4, "d_v": 4, axis: 0}
    b, h, q, k, d, e = sizes.values()
    inputs = (numbers(b, h, q, d), numbers(b, h, k, d), numbers(b, h, k, e))
    output = attended(kernel, engine, *inputs)
    assert output is None or output.shape == (b, h, q, e)
    assert output is None or np.isfinite(output).all()


@each_kernel
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"causal": True}, {"softcap": 5.0}, {"dropout": 0.5, "seed": 1}),
        {"bias": np.zeros((3, 0), np.float32)},
    ],
    ids=str,
)
def test_without_keys_weights_and_context_are_zero(kernel, engine, options):
    q, k = numbers(2, 4, 3, 8), numbers(2, 4, 0, 8)
    output = attended(kernel, engine, q, k, k, **options)
    assert output is None or (output.shape == (2, 4, 3, 8) and (output == 0).all())
    bias = {n: ENGINES[engine].array(o) if n == "bias" else o for n, o in options.items()}
    weights = headway.attention_weights(*map(ENGINES[engine].array, (q, k)), **bias)
    assert weights.shape == (2, 4, 3, 0)


@each_kernel
def test_strides_do_not_matter(kernel, engine):
    q, k, v = (numbers(2, 3, 5, 4, seed=n) for n in range(3))
    permuted = [x.transpose(3, 0, 2, 1).copy().transpose(1, 3, 2, 0) for x in (q, k, v)]
    output = attended(kernel, engine, *permuted, causal=True)
    expected = attended(kernel, engine, q, k, v, causal=True)
    assert (output is None) == (expected is None)
    assert output is None or np.allclose(output, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"softcap": cap}, "softcap must be a finite number > 0") for cap in (0.0, -1.0)),
        *(({"softcap": float(cap)}, "softcap must be a finite") for cap in ("nan", "inf")),
        *(({"scale": float(scale)}, "scale must be a finite number") for scale in ("nan", "inf")),
        ({"window": 0}, "window"),
        ({"dropout": 1.5, "seed": 1}, r"dropout must be at least 0 and below 1 \(got 1.5\)"),
        ({"dropout": float("nan"), "seed": 1}, "dropout must be at least 0"),
        ({"mask": np.zeros((5, 5))}, "bias"),
    ],
    ids=str,
)
def test_invalid_options_are_refused(options, message):
    x = torch.ones(2, 5, 4)
    for call in (headway.attend, headway.explain):
        with pytest.raises(ValueError, match=message):
            call(x, x, x, **options)
    with pytest.raises(ValueError, match=message):
        headway.attention_weights(x, x, **options)


def test_an_unknown_option_names_the_nearest():
    x = torch.ones(2, 5, 4)
    with pytest.raises(TypeError, match="unknown option 'causl'; did you mean 'causal'"):
        headway.attend(x, x, x, causl=True)


@pytest.mark.parametrize("kernel", TORCH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("keys", "value"),
    # The score of an infinite query and a single key may be -inf, which means "not allowed".
    [(1, torch.nan), *((n, x) for n in (2, 6, 15, 16, 40) for x in (torch.nan, torch.inf))],
)
@pytest.mark.parametrize("options", [{}, {"causal": True, "offset": 50}, {"window": 9}], ids=str)
def test_a_query_that_is_not_finite_shows_in_its_row_only(kernel, dtype, keys, value, options):
    """PyTorch's kernel for CPUs gives 0 instead, which hides a broken model."""
    q, k, v = (torch.tensor(numbers(1, 2, n, 8)) for n in (5, keys, keys))
    q[0, 1, 3, 2] = value
    context = headway.attend(q.to(dtype), k.to(dtype), v.to(dtype), kernel=kernel, **options)
    broken = ~torch.isfinite(context).all(-1)
    expected = torch.zeros_like(broken)
    expected[0, 1, 3] = True
    alive = headway.attend(*(torch.ones_like(x) for x in (q, k, v)), **options).any(-1)
    assert torch.equal(broken & alive, expected & alive)


@pytest.mark.parametrize("kernel", TORCH)
def test_a_key_that_is_nan_shows(kernel):
    for keys in (1, 2, 6, 15, 40):
        q, k, v = (torch.tensor(numbers(1, 2, n, 8)) for n in (5, keys, keys))
        k[0, 1, keys // 2] = torch.nan
        context = headway.attend(q, k, v, kernel=kernel)
        assert torch.isnan(context).any(-1)[0].tolist() == [[False] * 5, [True] * 5]


def test_a_model_with_broken_query_weights_has_broken_logits():
    model = GPT(gpt_config(vocabulary=50, context=32, width=48, layers=2, heads=4)).eval()
    with torch.no_grad():
        model.blocks[0].attention.q.weight[:] = torch.nan
        logits = model(torch.arange(12)[None])
    assert torch.isnan(logits).all()


@each_kernel
@pytest.mark.parametrize("traced", [False, True])
def test_products_beyond_the_range_of_float16(kernel, engine, traced):
    q = np.full((1, 1, 1, 8), 200.0, np.float16)  # the product is 320,000, the range 65,504
    k = np.concatenate([q, -q], axis=-2)
    v = np.broadcast_to(np.array([[1.0], [3.0]], np.float16), (1, 1, 2, 8))
    if traced:
        with headway.trace() as steps:
            output = attended(kernel, engine, q, k, v)
        assert output is None or "weights" in steps
    else:
        output = attended(kernel, engine, q, k, v)
    assert output is None or (output.dtype == np.float16 and np.allclose(output, 1.0))


@pytest.mark.parametrize("tokens", [6, 600])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 30.0}, {"dropout": 0.1, "seed": 1}], ids=["", "softcap", "dropout"]
)
def test_transforms_of_torch_func(tokens, options):
    q, k, v = (torch.tensor(numbers(2, 2, tokens, 8, seed=n)) for n in range(3))
    usual = partial(headway.attend, causal=True, kernel="plain", **options)
    chosen = partial(headway.attend, causal=True, **options)
    for attend in (usual, chosen):
        gradient = torch.func.grad(lambda a, attend=attend: attend(a, k, v).square().sum())(q)
        _, tangent = torch.func.jvp(lambda a, attend=attend: attend(a, k, v), (q,), (k,))
        mapped = torch.vmap(attend)(q, k, v)
        output = [gradient, tangent, mapped]
        if attend is usual:
            expected = output
    for one, other in zip(output, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-4)


def test_tiled_refuses_transforms_in_words():
    x = torch.ones(2, 5, 4)
    with pytest.raises(headway.Unsupported, match=r"does not support torch\.func transforms"):
        torch.func.grad(lambda a: headway.attend(a, x, x, kernel="tiled").sum())(x)


@each_kernel
def test_a_slice_of_a_batch_drops_the_same_weights(kernel, engine):
    q, k, v = (numbers(4, 2, 6, 4, seed=n) for n in range(3))
    options = {"causal": True, "dropout": 0.5, "seed": 3}
    complete = attended(kernel, engine, q, k, v, **options)
    parts = [
        attended(kernel, engine, q[rows], k[rows], v[rows], batch_offset=rows.start, **options)
        for rows in (slice(0, 2), slice(2, 4))  # of one size: JAX compiles for each shape
    ]
    if complete is not None:
        assert np.allclose(np.concatenate(parts), complete, atol=1e-6)
        assert not np.allclose(
            attended(kernel, engine, q[2:], k[2:], v[2:], **options), complete[2:]
        )


def test_a_mask_of_a_slice_has_the_positions_of_the_whole():
    q, k, v = (numbers(5, 2, 6, 4, seed=n) for n in range(3))
    mask = headway.padding(np.array([1, 2, 3, 4, 5]))
    complete = headway.attend(q, k, v, mask=mask)
    part = headway.attend(q[2:], k[2:], v[2:], mask=mask, batch_offset=2)
    assert np.allclose(part, complete[2:])


def test_a_refusal_names_the_option_without_a_line_in_the_kernel():
    """Options that a kernel does not declare are refused, including options added to Spec later."""
    x = torch.ones(1, 2, 5, 4)
    spec = spec_from({"score": lambda queries, keys: queries @ keys.mT})
    for name in ("sdpa", "tiled", "einsum", "triton", "flex"):
        kernel = KERNELS[name]._replace(refuse=lambda *call: None)
        assert refusal(kernel, x, x, x, spec) == "does not support the option score"
        assert refusal(kernel, x, x, x, DEFAULT) is None
    assert refusal(KERNELS["plain"], x, x, x, spec) is None


@pytest.mark.parametrize("engine", ENGINES)
def test_another_score_reaches_the_formula(engine):
    q, k, v = (ENGINES[engine].array(numbers(2, 5, 4, seed=n)) for n in range(3))
    output = headway.attend(q, k, v, score=lambda queries, keys: -(queries @ keys.mT))
    expected = headway.attend(-q, k, v)
    assert np.allclose(ENGINES[engine].numpy(output), ENGINES[engine].numpy(expected), atol=1e-6)
