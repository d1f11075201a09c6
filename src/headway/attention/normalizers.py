"""Normalizers turn scores into weights: `(scores, allowed) -> weights`, over the last axis.

Scores are -inf where a query may not attend to a key. `allowed` is False there, or None if every
key is allowed. Cells that are not allowed get weight 0 and do not influence other weights. In a
row without an allowed cell all weights are 0, not NaN and not uniform.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxtyping import Bool, Float

from headway.attention.arrays import Array, integers, namespace

Scores = Float[Array, "... keys"]
Allowed = Bool[Array, "... #keys"] | None
Weights = Float[Array, "... keys"]
Normalizer = Callable[[Scores, Allowed], Weights]


def softmax(scores: Scores, allowed: Allowed = None) -> Weights:
    """exp(score) divided by the sum of exp(score)."""
    xp = namespace(scores)
    exponentials = xp.exp(_shifted(scores, allowed, lowest=-xp.inf))
    return _masked_rows_to_zero(
        exponentials / xp.sum(exponentials, axis=-1, keepdims=True), allowed
    )


def divide_by_sum(scores: Scores, allowed: Allowed = None) -> Weights:
    """score divided by the sum of the scores, for scores that are never negative."""
    xp = namespace(scores)
    if allowed is not None:
        scores = xp.where(allowed, scores, 0.0)
    total = xp.sum(scores, axis=-1, keepdims=True)
    return scores / xp.where(total == 0, 1.0, total)


def sparsemax(scores: Scores, allowed: Allowed = None) -> Weights:
    """The point of the simplex nearest to the scores: weights = max(score - tau, 0).

    Martins and Astudillo 2016, algorithm 1: exact, by sorting. Small scores get weight 0.
    """
    xp = namespace(scores)
    # tau >= max - 1, so after the shift to max = 0 a score of -2 is outside the support. Lower
    # scores are clipped to -2, because their squares and sums could overflow.
    shifted = xp.clip(_shifted(scores, allowed, lowest=-2.0), -2.0, None)
    ordered = xp.sort(shifted, axis=-1, descending=True)
    size = xp.astype(integers(scores.shape[-1], scores) + 1, scores.dtype)
    inside = 1 + size * ordered > ordered.cumsum(-1)
    support = xp.sum(xp.astype(inside, scores.dtype), axis=-1, keepdims=True)
    tau = (xp.sum(xp.where(inside, ordered, 0.0), axis=-1, keepdims=True) - 1) / support
    return _masked_rows_to_zero(xp.where(shifted > tau, shifted - tau, 0.0), allowed)


def entmax15(scores: Scores, allowed: Allowed = None) -> Weights:
    """Entmax with alpha = 1.5, between softmax and sparsemax: weights = max(score / 2 - tau, 0)^2.

    Peters, Niculae and Martins 2019, appendix C: exact, by sorting.
    """
    xp = namespace(scores)
    shifted = xp.clip(_shifted(scores / 2, allowed, lowest=-2.0), -2.0, None)  # as in sparsemax
    ordered = xp.sort(shifted, axis=-1, descending=True)
    size = xp.astype(integers(scores.shape[-1], scores) + 1, scores.dtype)
    # With the k largest in the support, sum (z - tau)^2 = 1 gives tau = mean - sqrt(rest).
    means = ordered.cumsum(-1) / size
    spread = (ordered**2).cumsum(-1) - size * means**2
    rest = (1 - spread) / size
    inside = (rest >= 0) & (means - xp.sqrt(xp.where(rest > 0, rest, 0.0)) <= ordered)
    # Compute tau again from the support only, so that no gradient flows through the square roots
    # above: the gradient of the square root of 0 is infinite.
    support = xp.sum(xp.astype(inside, scores.dtype), axis=-1, keepdims=True)
    mean = xp.sum(xp.where(inside, ordered, 0.0), axis=-1, keepdims=True) / support
    variance = xp.sum(xp.where(inside, (ordered - mean) ** 2, 0.0), axis=-1, keepdims=True)
    tau = mean - xp.sqrt((1 - variance) / support)
    return _masked_rows_to_zero(xp.where(shifted > tau, shifted - tau, 0.0) ** 2, allowed)


# The normalizers that the config of a model can name.
NORMALIZERS: Mapping[str, Normalizer] = MappingProxyType(
    {"softmax": softmax, "sparsemax": sparsemax, "entmax15": entmax15}
)


def normalize(
    scores: Scores, normalizer: Normalizer, is_masked: bool, sinks: Array | None = None
) -> Weights:
    """Apply the normalizer to scores; if is_masked, a score of -inf means not allowed.

    sinks: one more score for each row, whose weight is removed afterwards.
    """
    xp = namespace(scores)
    if scores.shape[-1] == 0:  # no keys: their maximum would raise an error
        return scores
    if sinks is not None:
        column = xp.broadcast_to(sinks, (*scores.shape[:-1], 1))
        scores = xp.concat([scores, xp.astype(column, scores.dtype, copy=False)], axis=-1)
    weights = normalizer(scores, scores != -xp.inf if is_masked else None)
    return weights if sinks is None else weights[..., :-1]


def _masked_rows_to_zero(weights: Weights, allowed: Allowed) -> Weights:
    """Set the weights to 0 in rows without an allowed cell."""
    if allowed is None:
        return weights
    xp = namespace(weights)
    return xp.where(xp.any(allowed, axis=-1, keepdims=True), weights, 0.0)


def _shifted(scores: Scores, allowed: Allowed, lowest: float) -> Scores:
    """Subtract the largest allowed score of each row; cells that are not allowed become `lowest`.

    A row without an allowed cell becomes 0, so that later steps do not divide by zero.
    """
    xp = namespace(scores)
    if allowed is None:
        return scores - xp.max(scores, axis=-1, keepdims=True)
    any_allowed = xp.any(allowed, axis=-1, keepdims=True)
    scores = xp.where(allowed, scores, xp.finfo(scores.dtype).min)
    scores = xp.where(any_allowed, scores - xp.max(scores, axis=-1, keepdims=True), 0.0)
    return xp.where(allowed | ~any_allowed, scores, lowest)
