"""Trainable attention in JAX: three matrices, a forward pass, gradients, plain gradient descent.

    python examples/trainable_attention_jax.py

The task: predict, for each word, the features of the previous word (for the first word, its own).
Training uses sentences of six random words with three features each and six more for the position;
the result is shown on the sentence of the book.
"""

import jax
import jax.numpy as jnp
import numpy as np

import headway
from headway.jax.layers import Params
from headway.ladder.rung import RungConfig, words_and_inputs
from headway.ladder.rungs import rung_named

np.set_printoptions(precision=2, suppress=True)
PLACES = jnp.eye(6)


def with_places(features: jax.Array) -> jax.Array:
    """(..., 6 words, 3 features + 6 for the place)."""
    places = jnp.broadcast_to(PLACES, (*features.shape[:-1], 6))
    return jnp.concatenate([features, places], axis=-1)


sentences = jax.random.normal(jax.random.key(0), (256, 6, 3))
before = sentences[:, jnp.array([0, 0, 1, 2, 3, 4])]
x = with_places(sentences)

# 1. The matrices, (d_in, d_out), at random.
trainable = rung_named("trainable")
shapes = trainable.shapes(RungConfig(d_in=9, d_out=3))
keys = jax.random.split(jax.random.key(123), len(shapes))
params = {
    name: jax.random.normal(key, shape) / shape[0] ** 0.5
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
}
for name, matrix in params.items():
    print(f"{name} {matrix.shape}, its first row {np.asarray(matrix[0])}")


# 2. Forward: the rung of the ladder itself, on JAX's arrays.
def forward(params: Params, x: jax.Array) -> jax.Array:
    return trainable.apply(x, params)


# 3. How wrong it is, and the gradient of that by each number of each matrix.
def loss(params: Params) -> jax.Array:
    return jnp.mean((forward(params, x) - before) ** 2)


first = loss(params)
print(
    f"\nloss {first:.4f}; the gradient by W_query, its first row",
    jax.grad(loss)(params)["W_query"][0],
)


# 4. A step against the gradient, compiled, again and again.
RATE, STEPS = 1.0, 1000


@jax.jit
def step(params: Params) -> tuple[Params, jax.Array]:
    found, gradients = jax.value_and_grad(loss)(params)
    return {name: params[name] - RATE * gradients[name] for name in params}, found


for number in range(STEPS + 1):
    if number in (0, 1, 2, 10, 100, 300, STEPS):
        print(f"step {number:5}: loss {loss(params):.4f}")
    params, _ = step(params)

# 5. Where each word of the book's sentence looks now: at the one before it.
words, features = words_and_inputs()
with headway.trace() as steps:
    forward(params, with_places(jnp.asarray(features)))
weights = np.asarray(steps["weights"])
print("\n" + " " * 9 + " ".join(f"{word:>8}" for word in words))
for word, row in zip(words, weights, strict=True):
    print(f"{word:>8} " + " ".join(f"{weight:8.2f}" for weight in row))
print("\neach word but the first looks most at the one before it:", end=" ")
print((weights[1:].argmax(-1) == np.arange(5)).all())
