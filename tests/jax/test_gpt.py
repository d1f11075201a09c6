"""GPT in JAX: cache, errors, traces. (test_parity.py compares its numbers with PyTorch.)"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import headway
from gpts import MODERN, PRESETS, TOKENS, config, lively
from headway.jax import gpt
from headway.jax.layers import multi_head, of_rung
from headway.ladder.rungs import LADDER
from headway.torch import GPT
from headway.torch.weights import fill


def params_of(of, attention=multi_head):
    return {n: jnp.asarray(a) for n, a in lively(of, attention.shapes(of)).items()}


@pytest.mark.parametrize("name", ["gpt2", "relative", "alibi", "wide heads"])
def test_cached_logits_equal_those_of_the_complete_text(name):
    """Two rows of different lengths, each continued after its last token, over its padding."""
    of = config(**PRESETS[name])
    params = params_of(of)
    expected = jax.jit(gpt.forward, static_argnums=2)(params, TOKENS, of)
    cached = jax.jit(gpt.forward_cached, static_argnums=(2, 3))
    lengths = np.array([3, 5])
    caches = gpt.empty_caches(params, of, 2, of.context)
    logits, caches = cached(params, TOKENS[:, :6], of, multi_head, caches, first=0)
    for row, length in enumerate(lengths):
        assert np.allclose(logits[row, :length], expected[row, :length], rtol=0, atol=1e-10)
    for more in range(4):
        at = lengths + more
        token = TOKENS[np.arange(2), at][:, None]
        logits, caches = cached(params, token, of, multi_head, caches, first=at)
        assert np.allclose(logits[:, 0], expected[np.arange(2), at], rtol=0, atol=1e-10)


def test_no_logit_depends_on_a_later_token():
    of = config()
    params = params_of(of)
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    forward = jax.jit(gpt.forward, static_argnums=2)
    one, other = (forward(params, tokens, of) for tokens in (TOKENS, changed))
    assert np.array_equal(one[:, :5], other[:, :5])
    assert (one[:, 5:] != other[:, 5:]).any(-1).all()


def test_a_text_longer_than_the_context_raises():
    of = config()
    with pytest.raises(ValueError, match="11 tokens do not fit a context of 10"):
        gpt.forward(params_of(of), np.zeros((1, 11), int), of)


def test_a_rung_raises_for_options_it_lacks_and_for_a_cache():
    rung = of_rung(LADDER["multihead"])
    with pytest.raises(ValueError, match="remove one of the two settings"):
        gpt.init(config(**MODERN), 0, rung)
    of = config()
    params = params_of(of, rung)
    caches = gpt.empty_caches(params, of, 2, of.context)
    with pytest.raises(ValueError, match="does not support a cache"):
        gpt.forward_cached(params, TOKENS, of, rung, caches, first=0)


def test_both_engines_record_the_same_steps():
    of = config(kv_heads=2, **MODERN)
    arrays = {name: array.astype("float32") for name, array in lively(of).items()}
    of_torch = GPT(of)
    fill(of_torch, arrays)
    with torch.no_grad(), headway.trace() as expected:
        of_torch(torch.from_numpy(TOKENS))
    params = {name: jnp.asarray(array) for name, array in arrays.items()}
    with headway.trace() as steps:
        gpt.forward(params, TOKENS, of)
    first = [name for name in expected if name.startswith("blocks.0.attention.")]
    assert [name.rpartition(".")[2] for name in first] == [
        *("unnormalized_queries", "unnormalized_keys", "unrotated_queries", "unrotated_keys"),
        *("queries", "keys", "values", "scores", "scaled", "masked", "weights", "context"),
        "output",
    ]
    assert list(steps) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(steps[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_compiled_model_can_be_traced_and_edited_and_is_not_compiled_again():
    of = config()
    params = params_of(of)
    forward = jax.jit(partial(gpt.forward), static_argnames="config")  # with its own cache
    usual = forward(params, TOKENS, config=of)
    with headway.trace() as steps:
        traced = forward(params, TOKENS, config=of)
    weights = steps["blocks.1.attention.weights"]
    assert weights.shape == (2, 4, 9, 9)
    assert np.allclose(weights.sum(-1), 1)
    assert np.allclose(traced, usual, rtol=0, atol=1e-12)
    with headway.edit({"blocks.0.attention.context": lambda context: context * 0}):
        assert not np.allclose(forward(params, TOKENS, config=of), usual)
    assert np.array_equal(forward(params, TOKENS, config=of), usual)
    assert forward._cache_size() == 1
    with headway.trace(), pytest.raises(RuntimeError, match="is a JAX tracer"):
        jax.grad(lambda p: gpt.forward(p, TOKENS, of).sum())(params)
