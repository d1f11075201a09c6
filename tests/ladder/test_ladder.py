"""Tests of the rungs against the numbers of the book, the reference and each other."""

import subprocess
import sys
from itertools import product

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import ENGINES
from headway.attention import masks
from headway.attention.dispatch import attention_weights
from headway.attention.formula import attention
from headway.attention.online import online_attention
from headway.attention.spec import Spec
from headway.ladder import causal, fused, multihead, stacked, tiled
from headway.ladder.rung import INPUTS, RungConfig, run_example, words_and_inputs
from headway.ladder.rungs import LADDER, rung_named
from headway.ladder.trainable import BOOK
from headway.reference import ladder as reference

BATCH, TOKENS, D_IN, D_OUT, HEADS = 2, 5, 3, 8, 4
ONE_PROJECTION = ("multihead", "fused", "tiled")
MULTIPLE = ("stacked", *ONE_PROJECTION)


def problem(name, seed):
    """An input, parameters, a Spec and heads for a rung, as NumPy arrays."""
    rung = LADDER[name]
    heads = HEADS if rung.has_heads else 1
    r = np.random.default_rng(seed)
    x = r.normal(size=(BATCH, TOKENS, D_IN))
    shapes = rung.shapes(RungConfig(D_IN, D_OUT, heads))
    parameters = {n: r.normal(size=shape) for n, shape in shapes.items()}
    spec = Spec(dropout=0.3, seed=(seed, 7)) if rung.has_dropout else Spec()
    return x, parameters, spec, heads


def test_the_names_and_their_order():
    names = "fixed simplified trainable causal dropout stacked multihead fused tiled"
    assert list(LADDER) == names.split()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LADDER)
@given(seed=st.integers(0, 10_000))
def test_every_rung_equals_the_reference(engine, name, seed):
    x, parameters, spec, heads = problem(name, seed)
    lengths = np.array([5, 3])
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    padded = spec._replace(mask=masks.padding(array(lengths)))
    arrays = {n: array(p) for n, p in parameters.items()}
    output = LADDER[name](array(x), arrays, padded, heads=heads)
    more = {"heads": heads} if name in ONE_PROJECTION else {}
    seed = spec.seed if spec.dropout else ()
    for row in range(BATCH):
        allowed = np.broadcast_to(np.arange(TOKENS) < lengths[row], (TOKENS, TOKENS))
        options = reference.Options(allowed, spec.dropout, seed, row)
        _, context = getattr(reference, name)(x[row], parameters, options, **more)
        assert np.allclose(numpy(output)[row], context, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LADDER)
def test_gradients_of_torch_and_jax_agree(name):
    x, parameters, spec, heads = problem(name, 1)

    def run(x, *values):
        named = dict(zip(parameters, values, strict=True))
        return LADDER[name](x, named, spec, heads=heads)

    # Jitted: one compilation instead of one for each operation.
    runs = {"torch": run, "jax": jax.jit(run)}
    output = [ENGINES[e].gradients(f, x, *parameters.values()) for e, f in runs.items()]
    for one, other in zip(*output, strict=True):
        assert np.abs(one).sum() > 0
        assert np.allclose(one, other, rtol=0, atol=1e-10)


def test_simplified_has_the_numbers_of_the_book():
    _, steps, context = run_example(LADDER["simplified"])
    assert np.allclose(
        steps["scores"][1], [0.9544, 1.4950, 1.4754, 0.8434, 0.7070, 1.0865], atol=5e-5
    )
    assert np.allclose(
        steps["weights"][1], [0.1385, 0.2379, 0.2333, 0.1240, 0.1082, 0.1581], atol=5e-5
    )
    assert np.allclose(context[1], [0.4419, 0.6515, 0.5683], atol=5e-5)


def test_trainable_has_the_numbers_of_the_book():
    _, _, context = run_example(LADDER["trainable"])
    assert np.allclose(context[1], [0.3061, 0.8210], atol=5e-5)


def test_the_matrices_of_the_book_are_those_of_its_seed():
    import torch

    torch.manual_seed(123)
    for name in ("W_query", "W_key", "W_value"):
        assert np.array_equal(BOOK[name].astype(np.float32), torch.rand(3, 2).numpy())


def test_fixed_does_not_depend_on_the_content():
    x = np.random.default_rng(0).normal(size=(4, 3))
    fixed = LADDER["fixed"]
    assert np.allclose(fixed(x, {}) + fixed(2 * x, {}), fixed(3 * x, {}), atol=1e-15)
    assert np.allclose(fixed(np.eye(3), {})[0], np.array([4, 2, 1]) / 7)


def test_masking_before_the_softmax_equals_renormalising_after():
    r = np.random.default_rng(0)
    q, k = r.normal(size=(2, 3, 6, 4)), r.normal(size=(2, 3, 6, 4))
    before = attention_weights(q, k, mask=masks.causal)
    assert np.allclose(causal.mask_then_renormalise(q, k), before, rtol=0, atol=1e-15)


def test_from_stacked_to_tiled_the_same_numbers_give_the_same_context():
    x, parameters, *_ = problem("stacked", 3)
    spec = Spec(masks.window(3))
    first = stacked.apply(x, parameters, spec, heads=HEADS)
    packed = multihead.from_stacked(parameters, np.eye(D_OUT))
    fused_once = fused.from_multihead(packed)
    for rung, same in ((multihead, packed), (fused, fused_once), (tiled, fused_once)):
        output = rung.apply(x, same, spec, heads=HEADS)
        assert np.allclose(output, first, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("engine", "block"),
    [
        *((engine, block) for engine in ENGINES if engine != "jax" for block in (1, 2, 5, 64)),
        *(pytest.param("jax", n, marks=pytest.mark.slow) for n in (1, 2, 5)),  # a step each
        ("jax", 64),
    ],
)
def test_tiled_equals_the_formula_for_any_block_size(engine, block):
    r = np.random.default_rng(0)
    q, k, v = (r.normal(size=s) for s in ((2, 4, 5, 3), (2, 2, 7, 3), (2, 2, 7, 6)))
    bias = r.normal(size=(4, 5, 7))
    bias[:, 2] = -np.inf
    bias[:, 3, :4] = -np.inf
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    spec = Spec(masks.window(4), array(bias), softcap=2.0, dropout=0.3, seed=5)
    output = online_attention(*map(array, (q, k, v)), spec, block)
    expected = attention(*map(array, (q, k, v)), spec)
    assert np.allclose(numpy(output), numpy(expected), rtol=0, atol=1e-12)
    if engine != "numpy":

        def run(q, k, v):
            return online_attention(q, k, v, spec, block)

        def plain(q, k, v):
            return attention(q, k, v, spec)

        pairs = zip(*(ENGINES[engine].gradients(f, q, k, v) for f in (run, plain)), strict=True)
        assert all(np.allclose(one, other, rtol=0, atol=1e-10) for one, other in pairs)


@pytest.mark.parametrize("name", ["dropout", *MULTIPLE])
def test_dropout_is_off_unless_asked_and_needs_a_seed(name):
    x, parameters, _, heads = problem(name, 0)
    rung = LADDER[name]
    seeded = rung(x, parameters, Spec(seed=3), heads=heads)
    assert np.array_equal(rung(x, parameters, heads=heads), seeded)
    with pytest.raises(ValueError, match="needs a seed"):
        rung(x, parameters, Spec(dropout=0.1), heads=heads)


@pytest.mark.parametrize("name", ["fixed", "simplified", "trainable", "causal"])
def test_rungs_refuse_options_of_later_rungs(name):
    x, parameters, *_ = problem(name, 0)
    with pytest.raises(ValueError, match="use 'stacked' or a later rung"):
        LADDER[name](x, parameters, heads=2)
    with pytest.raises(ValueError, match="use 'dropout' or a later rung"):
        LADDER[name](x, parameters, Spec(dropout=0.1, seed=0))
    if not LADDER[name].causal:
        with pytest.raises(ValueError, match="does not support 'softcap', only a mask"):
            LADDER[name](x, parameters, Spec(softcap=2.0))


CAUSAL = [name for name, rung in LADDER.items() if rung.causal]


@pytest.mark.parametrize(
    ("name", "engine"),
    # JAX compiles for each number of tokens, so there only one of the rungs that share `apply`.
    [*product(CAUSAL, ["numpy", "torch"]), *product(["dropout", *MULTIPLE], ["jax"])],
)
def test_decoding_token_by_token_equals_one_call(name, engine):
    rung = LADDER[name]
    x, parameters, _, heads = problem(name, 0)
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    arrays = {n: array(p) for n, p in parameters.items()}
    options = {"heads": heads} if rung.has_heads else {}
    expected = numpy(rung(array(x), arrays, heads=heads))
    state = None
    for token in range(TOKENS):
        context, state = rung.step(array(x[:, [token]]), arrays, state, **options)
        assert np.allclose(numpy(context)[:, 0], expected[:, token], rtol=0, atol=1e-12)
        kept = sum(numpy(part).size for pair in state for part in pair)
        assert kept == BATCH * rung.state_size(RungConfig(D_IN, D_OUT, heads), token + 1)


def test_only_causal_rungs_have_a_step():
    assert [name for name, rung in LADDER.items() if rung.step] == CAUSAL
    assert [name for name, rung in LADDER.items() if rung.state_size] == CAUSAL


@pytest.mark.parametrize("name", MULTIPLE)
def test_heads_must_divide_the_width(name):
    with pytest.raises(ValueError, match="3 heads do not divide"):
        LADDER[name].shapes(RungConfig(6, 8, 3))


@pytest.mark.parametrize("name", LADDER)
def test_rungs_from_causal_on_use_the_function_attend(name):
    calls = []

    def attend(*arguments):
        calls.append(1)
        return attention(*arguments)

    x, parameters, spec, heads = problem(name, 0)
    output = LADDER[name](x, parameters, spec, heads=heads, attend=attend)
    assert np.allclose(output, LADDER[name](x, parameters, spec, heads=heads), atol=1e-12)
    early = ("fixed", "simplified", "trainable")
    assert len(calls) == (0 if name in early else HEADS if name == "stacked" else 1)


@pytest.mark.parametrize("name", LADDER)
def test_each_module_prints_its_example(name):
    process = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"headway.ladder.{name}"],
        capture_output=True,
        text=True,
        check=True,
    )
    _, _, context = run_example(LADDER[name])
    assert f"{context[1, 0]:.4f}" in process.stdout
    assert LADDER[name].equation.split()[0] in process.stdout


def test_features_of_words_are_those_of_the_book_or_a_function_of_the_word():
    words, inputs = words_and_inputs("your JOURNEY zürich zürich")
    assert words == ["your", "JOURNEY", "zürich", "zürich"]
    assert inputs[:2].tolist() == [list(INPUTS[0]), list(INPUTS[1])]
    assert np.array_equal(inputs[2], inputs[3])


def test_an_unknown_rung_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'multihead'"):
        rung_named("multi-head")
