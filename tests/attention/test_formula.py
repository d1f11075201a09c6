"""Tests of the formula on three engines against the reference, including gradients."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headway
from engines import ENGINES
from headway.attention import masks, normalizers
from headway.attention.formula import attention
from headway.attention.kernels.cases import CASES
from headway.attention.shapes import aligned
from headway.attention.spec import Spec
from headway.reference import attention as reference
from headway.reference import masks as reference_masks
from headway.reference import normalizers as reference_normalizers

NORMALIZERS = {
    name: (getattr(normalizers, name), getattr(reference_normalizers, name))
    for name in ("softmax", "divide_by_sum", "sparsemax", "entmax15")
}


def arrays(case, seed=0):
    r = np.random.default_rng(seed)
    return [r.normal(size=shape) for shape in case.shapes]


def reference_allowed(case):
    """The options causal and window of a case as the reference's mask matrix."""
    queries, keys, _ = case.shapes
    offset = case.options.get("offset")
    batch = int(np.prod(queries[:-3]))
    window = case.options.get("window")

    def allowed(b, h, q, k):
        causal = reference_masks.causal(b, h, q, k) if case.options.get("causal") else True
        return causal and (window is None or reference_masks.window(window)(b, h, q, k))

    return reference_masks.matrix(allowed, batch, queries[-3], queries[-2], keys[-2], offset)


def expected(case, q, k, v, **options):
    flat = [x.reshape((-1, *x.shape[-3:])) for x in (q, k, v)]
    weights, context = reference.attention(
        *flat, allowed=reference_allowed(case), scale=case.options.get("scale"), **options
    )
    leading = q.shape[:-3]
    return weights.reshape((*leading, *weights.shape[1:])), context.reshape(
        (*leading, *context.shape[1:])
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@given(seed=st.integers(0, 10_000))
def test_every_case_equals_the_reference(engine, case, seed):
    given_arrays = arrays(case, seed)
    q, k, v = map(ENGINES[engine].array, given_arrays)
    weights, context = expected(case, *given_arrays)
    options = dict(case.options)
    output = headway.attend(q, k, v, kernel="plain", **options)
    assert np.allclose(ENGINES[engine].numpy(output), context, rtol=0, atol=1e-12)
    output = headway.attention_weights(q, k, **options)
    assert np.allclose(ENGINES[engine].numpy(output), weights, rtol=0, atol=1e-12)


def gradients(engine, run, *arrays):
    """On JAX jitted: one compilation instead of one for each operation."""
    return ENGINES[engine].gradients(jax.jit(run) if engine == "jax" else run, *arrays)


@pytest.mark.parametrize(
    "name", ["cached", "more queries", "top left", "grouped", "window", "scaled", "two batch axes"]
)
def test_gradients_of_torch_and_jax_agree(name):
    case = CASES[name]

    def run(q, k, v):
        return headway.attend(q, k, v, kernel="plain", **case.options)

    output = [gradients(engine, run, *arrays(case)) for engine in ("torch", "jax")]
    for one, other in zip(*output, strict=True):
        assert np.isfinite(one).all()
        assert np.allclose(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize(("softcap", "rate"), [(None, 0.0), (1.5, 0.4)])
def test_bias_softcap_dropout_and_normalizers(engine, name, softcap, rate):
    case = CASES["grouped"]
    q, k, v = arrays(case)
    if name == "divide_by_sum":  # requires positive scores
        q, k = abs(q), abs(k)
    r = np.random.default_rng(5)
    bias = abs(r.normal(size=(6, 1, 7)))
    bias[r.random(bias.shape) < 0.3] = -np.inf
    ours, theirs = NORMALIZERS[name]
    options = {"softcap": softcap, "dropout": rate, "seed": (3, 2**31)}
    _, context = expected(case, q, k, v, bias=bias, normalizer=theirs, **options)
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    spec = Spec(masks.causal, array(bias), normalizer=ours, **options)
    output = attention(*map(array, (q, k, v)), spec)
    assert np.allclose(numpy(output), context, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("by", ["mask", "bias"])
def test_a_dead_row_is_zero_with_gradient_zero(engine, name, by):
    case = CASES["cross"]
    given_arrays = [abs(x) for x in arrays(case)]
    alive = np.ones((5, 7), dtype=bool)
    alive[2], alive[3, :6] = False, False
    forbid = alive if by == "mask" else np.where(alive, 0.0, -np.inf)
    array = ENGINES[engine].array

    def run(q, k, v):
        return headway.attend(
            q, k, v, normalizer=NORMALIZERS[name][0], kernel="plain", **{by: array(forbid)}
        )

    output = ENGINES[engine].numpy(run(*map(array, given_arrays)))
    assert (output[..., 2, :] == 0).all()
    assert np.allclose(output[..., 3, :], given_arrays[2][..., 6, :])
    if engine != "numpy":
        output = gradients(engine, run, *given_arrays)
        assert all(np.isfinite(gradient).all() for gradient in output)
        assert (output[0][..., 2, :] == 0).all()
        assert (output[0][..., 1, :] != 0).any()


def test_a_nan_is_not_masked_away():
    q, k, v = arrays(CASES["causal"])
    q[:, :, 3] = np.nan
    output = attention(q, k, v, Spec(masks.causal))
    assert np.isnan(output[:, :, 3]).all()
    assert np.isfinite(output[:, :, :3]).all()


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_no_token_sees_the_future_or_misses_the_past(engine):
    """Gradients: exactly zero after t, not zero up to t (after nanodo)."""
    arrays_ = arrays(CASES["causal"])
    for t in range(6):

        def at_t(q, k, v, t=t):
            return headway.attend(q, k, v, causal=True)[:, :, t]

        gradient = ENGINES[engine].gradients(at_t, *arrays_)[2]
        assert (gradient[:, :, t + 1 :] == 0).all()
        assert (gradient[:, :, : t + 1] != 0).all()


def test_offset_for_each_row_of_the_batch():
    q, k, v = arrays(CASES["cached"])
    output = attention(q, k, v, Spec(masks.causal, offset=np.array([0, 3])))
    for row, offset in enumerate((0, 3)):
        alone = attention(q[[row]], k[[row]], v[[row]], Spec(masks.causal, offset=offset))
        assert np.array_equal(output[[row]], alone)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"queries": (2, 3, 5, 9)}, "d_k"),
        ({"values": (2, 3, 6, 4)}, "same number of tokens"),
        ({"values": (2, 2, 5, 4)}, "same number of heads"),
        ({"keys": (2, 2, 5, 4), "values": (2, 2, 5, 4)}, "divide"),
        ({"keys": (3, 3, 5, 4), "values": (3, 3, 5, 4)}, "batch axes"),
        ({"queries": (4,)}, "attend expects"),
    ],
)
def test_errors_list_the_shapes(broken, message):
    shapes = {"queries": (2, 3, 5, 4), "keys": (2, 3, 5, 4), "values": (2, 3, 5, 4)} | broken
    with pytest.raises(ValueError, match=message) as error:
        aligned(*(np.zeros(shape) for shape in shapes.values()))
    assert all(str(shape) in str(error.value) for shape in shapes.values())


SINKS = np.array([0.5, -2.0, 3.0])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["softmax", "sparsemax"])
def test_a_sink_takes_weight_and_has_no_value(engine, name):
    case = CASES["more queries"]  # its first queries may attend to no key
    q, k, v = arrays(case)
    ours, theirs = NORMALIZERS[name]
    weights, context = expected(case, q, k, v, normalizer=theirs, sink_logits=SINKS)
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    options = {**case.options, "normalizer": ours, "sink_logits": array(SINKS)}
    inputs = [array(x) for x in (q, k, v)]
    output = numpy(headway.attention_weights(*inputs[:2], **options))
    assert np.allclose(output, weights, rtol=0, atol=1e-12)
    assert np.allclose(numpy(headway.attend(*inputs, **options)), context, rtol=0, atol=1e-12)
    assert (output.sum(-1) < 1).any()
    assert (output[..., :3, :] == 0).all()


def test_sink_logits_are_one_number_per_head():
    q, k, v = arrays(CASES["self"])
    for kernel in ("plain", "tiled"):
        with pytest.raises(ValueError, match=r"one number per head, shape \(3,\); got \(4,\)"):
            headway.attend(q, k, v, sink_logits=np.zeros(4), kernel=kernel)
