"""The loss without all logits in memory is the library's, with the library's gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from headway.jax.loss import linear_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("at_once", [1, 30, 34, 10**6])
def test_loss_and_gradients_are_those_of_the_library(at_once, smoothing):
    generator = np.random.default_rng(0)
    features, weight = (jnp.asarray(generator.normal(size=(n, 5))) for n in (13, 11))
    targets = jnp.asarray(generator.integers(0, 11, 13))

    def ours(features, weight):
        options = {"smoothing": smoothing, "logits_at_once": at_once}
        return 3 * linear_cross_entropy(features, weight, targets, **options)

    def library(features, weight):
        wanted = optax.smooth_labels(jax.nn.one_hot(targets, 11), smoothing)
        return 3 * optax.softmax_cross_entropy(features @ weight.T, wanted).mean()

    value = ours(features, weight)  # without gradients
    assert float(value) == pytest.approx(float(library(features, weight)), rel=1e-6)
    values, gradients = jax.value_and_grad(ours, (0, 1))(features, weight)
    expected, wanted = jax.value_and_grad(library, (0, 1))(features, weight)
    assert float(values) == pytest.approx(float(expected), rel=1e-6)
    for gradient, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6)


def test_the_memory_is_that_of_a_part():
    features, weight = jnp.ones((4096, 8), jnp.bfloat16), jnp.ones((1000, 8), jnp.bfloat16)
    targets = jnp.zeros(4096, jnp.int32)

    def memory(at_once):
        def loss(features, weight):
            return linear_cross_entropy(features, weight, targets, logits_at_once=at_once)

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(features, weight).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(1000 * 64) < memory(10**7) / 20
