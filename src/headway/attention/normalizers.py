"""From scores to weights: `(scores, allowed) -> weights`, over the last axis.

Scores are -inf where a query may not attend to a key; `allowed` says the same as booleans, or is
None where every key is allowed. Cells that are not allowed get weight 0 and have no influence, and
a row in which nothing is allowed gets weights 0: not NaN, not the mean of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxtyping import Bool, Float

from headway.attention.arrays import Array, integers, namespace

Scores = Float[Array, "... keys"]
Allowed = Bool[Array, "... #keys"] | None
Weights = Float[Array, "... keys"]
Normalizer = Callable[[Scores, Allowed], Weights]


def softmax(scores: Scores, allowed: Allowed = None) -> Weights:
    """exp(score) over the sum of exp(score)."""
    xp = namespace(scores)
    exponentials = xp.exp(_shifted(scores, allowed, lowest=-xp.inf))
    return _alive(exponentials / xp.sum(exponentials, axis=-1, keepdims=True), allowed)


def divide_by_sum(scores: Scores, allowed: Allowed = None) -> Weights:
    """score over the sum of the scores: for scores that are positive by themselves."""
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
    # tau >= max - 1, so after the shift to max = 0 whatever lies at -2 is outside the support;
    # squares and sums of what lies lower could overflow.
    shifted = xp.clip(_shifted(scores, allowed, lowest=-2.0), -2.0, None)
    ordered = xp.sort(shifted, axis=-1, descending=True)
    size = xp.astype(integers(scores.shape[-1], scores) + 1, scores.dtype)
    inside = 1 + size * ordered > ordered.cumsum(-1)
    support = xp.sum(xp.astype(inside, scores.dtype), axis=-1, keepdims=True)
    tau = (xp.sum(xp.where(inside, ordered, 0.0), axis=-1, keepdims=True) - 1) / support
    return _alive(xp.where(shifted > tau, shifted - tau, 0.0), allowed)


def entmax15(scores: Scores, allowed: Allowed = None) -> Weights:
    """Between softmax and sparsemax: weights = max(score / 2 - tau, 0) ** 2.

    Peters, Niculae and Martins 2019, appendix C: alpha = 1.5, exact, by sorting.
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
    # tau once more from the support alone: no gradient then passes the square roots above, one
    # of which may be that of zero.
    support = xp.sum(xp.astype(inside, scores.dtype), axis=-1, keepdims=True)
    mean = xp.sum(xp.where(inside, ordered, 0.0), axis=-1, keepdims=True) / support
    variance = xp.sum(xp.where(inside, (ordered - mean) ** 2, 0.0), axis=-1, keepdims=True)
    tau = mean - xp.sqrt((1 - variance) / support)
    return _alive(xp.where(shifted > tau, shifted - tau, 0.0) ** 2, allowed)


# By name, for the config of a model.
NORMALIZERS: Mapping[str, Normalizer] = MappingProxyType(
    {"softmax": softmax, "sparsemax": sparsemax, "entmax15": entmax15}
)


def normalize(scores: Scores, normalizer: Normalizer, is_masked: bool) -> Weights:
    """The weights of scores, which are -inf where not allowed if they are masked at all."""
    if scores.shape[-1] == 0:  # without keys there is nothing to normalize
        return scores
    return normalizer(scores, scores != -namespace(scores).inf if is_masked else None)


def _alive(weights: Weights, allowed: Allowed) -> Weights:
    """The weights, 0 in rows in which nothing is allowed."""
    if allowed is None:
        return weights
    xp = namespace(weights)
    return xp.where(xp.any(allowed, axis=-1, keepdims=True), weights, 0.0)


def _shifted(scores: Scores, allowed: Allowed, lowest: float) -> Scores:
    """The scores less their row's largest allowed one; `lowest` where not allowed.

    A row with nothing allowed becomes all 0, so that nothing downstream divides by zero.
    """
    xp = namespace(scores)
    if allowed is None:
        return scores - xp.max(scores, axis=-1, keepdims=True)
    alive = xp.any(allowed, axis=-1, keepdims=True)
    scores = xp.where(allowed, scores, xp.finfo(scores.dtype).min)
    scores = xp.where(alive, scores - xp.max(scores, axis=-1, keepdims=True), 0.0)
    return xp.where(allowed | ~alive, scores, lowest)
