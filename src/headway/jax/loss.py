"""The cross-entropy of a language model, without the logits of all tokens in memory."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from headway.attention.arrays import Array, widened

LOGITS = 2**26  # maximum number of logits in memory at once


def linear_cross_entropy(
    features: Float[Array, "rows width"],
    weight: Float[Array, "vocabulary width"],
    targets: Int[Array, " rows"],
    *,
    smoothing: float = 0.0,
    logits_at_once: int = LOGITS,
) -> Float[Array, ""]:
    """Return the mean cross-entropy of the logits `features @ weight.T`, in nats.

    As in `headway.torch.loss`: with gradients, each part of the logits gives its loss and its
    gradients before the next part is computed. First derivatives only.

    smoothing: the fraction of a target's probability that is spread over all tokens.
    """
    at_once = min(max(1, logits_at_once // len(weight)), len(targets))
    return _mean(smoothing, at_once, features, weight, targets)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean(smoothing: float, at_once: int, features: Array, weight: Array, targets: Array) -> Array:
    def loss(rows_and_words: tuple[Array, Array]) -> Array:
        rows, words = rows_and_words
        return _loss(_log_probabilities(rows, weight), words, smoothing)

    return jax.lax.map(loss, _parts(features, targets, at_once)).sum() / len(targets)


def _forward(
    smoothing: float, at_once: int, features: Array, weight: Array, targets: Array
) -> tuple[Array, tuple[Array, Array]]:
    """The mean loss, and its gradients."""

    def part(of_weight: Array, rows_and_words: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, words = rows_and_words
        wide = _log_probabilities(rows, weight)
        is_target = jnp.arange(len(weight)) == words[:, None]
        target = (1 - smoothing) * is_target + smoothing / len(weight)
        gradient = jnp.where(words[:, None] < 0, 0.0, jnp.exp(wide) - target).astype(rows.dtype)
        of_weight = of_weight + gradient.mT @ rows
        return of_weight, (_loss(wide, words, smoothing), gradient @ weight)

    parts = _parts(features, targets, at_once)
    of_weight, (losses, of_features) = jax.lax.scan(part, jnp.zeros_like(widened(weight)), parts)
    of_features = of_features.swapaxes(0, 1).reshape(-1, features.shape[1])[: len(features)]
    return losses.sum() / len(targets), (of_features, of_weight.astype(weight.dtype))


def _backward(
    smoothing: float, at_once: int, gradients: tuple[Array, Array], received: Array
) -> tuple[Array, Array, None]:
    of_features, of_weight = gradients
    scale = (received / len(of_features)).astype(of_features.dtype)
    return of_features * scale, of_weight * scale, None


_mean.defvjp(_forward, _backward)


def _parts(features: Array, targets: Array, at_once: int) -> tuple[Array, Array]:
    """Split the rows into parts; the target of rows that fill the last part is -1.

    Every part has rows from the whole range, so that rows that are distributed over devices stay
    there.
    """
    added = -len(targets) % at_once
    features = jnp.pad(features, ((0, added), (0, 0))).reshape(at_once, -1, features.shape[1])
    targets = jnp.pad(targets, (0, added), constant_values=-1).reshape(at_once, -1)
    return features.swapaxes(0, 1), targets.swapaxes(0, 1)


def _log_probabilities(rows: Array, weight: Array) -> Float[Array, "rows words"]:
    return jax.nn.log_softmax(widened(rows @ weight.mT))


def _loss(
    log_probabilities: Float[Array, "rows words"], targets: Int[Array, " rows"], smoothing: float
) -> Float[Array, ""]:
    """Return the sum of the losses."""
    picked = jnp.take_along_axis(log_probabilities, targets[:, None], axis=-1)[:, 0]
    losses = -(1 - smoothing) * picked - smoothing * log_probabilities.mean(-1)
    return jnp.where(targets < 0, 0.0, losses).sum()
