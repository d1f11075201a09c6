"""The reference for normalizers: `(scores, allowed) -> weights` of one row, all of shape (keys,).

Scores where `allowed` is False have no effect, and their weight is 0. If nothing is allowed, all
weights are 0.
"""

import math
from collections.abc import Callable

import numpy as np

from headway.reference import Array, Mask


def divide_by_sum(scores: Array, allowed: Mask) -> Array:
    """Each allowed score divided by the sum of the allowed scores; zeros if that sum is 0."""
    kept = [s if ok else 0.0 for s, ok in zip(scores.tolist(), allowed.tolist(), strict=True)]
    total = sum(kept)
    return np.array([score / total if total != 0.0 else 0.0 for score in kept])


def softmax(scores: Array, allowed: Mask) -> Array:
    """exp(score) divided by the sum of exp(score): Vaswani et al. 2017, equation 1."""
    exponentials = [math.exp(gap) for gap in _gaps(scores, allowed)]
    return divide_by_sum(np.array(exponentials), allowed)


def sparsemax(scores: Array, allowed: Mask) -> Array:
    """max(score - tau, 0), with the tau that makes the sum 1: Martins & Astudillo 2016, eq. 3."""
    if not allowed.any():
        return np.zeros(len(scores))
    gaps = _gaps(scores, allowed)
    rough = _threshold(lambda tau: sum(max(gap - tau, 0.0) for gap in gaps))
    support = [gap for gap in gaps if gap > rough]
    # Bisection gives the support. There the sum is linear in tau, which gives tau exactly.
    tau = (sum(support) - 1.0) / len(support)
    return np.array([max(gap - tau, 0.0) for gap in gaps])


def entmax15(scores: Array, allowed: Mask) -> Array:
    """max(score / 2 - tau, 0)**2, with the tau that makes the sum 1.

    Entmax with alpha = 1.5, halfway from softmax to sparsemax: Peters, Niculae & Martins 2019.
    """
    if not allowed.any():
        return np.zeros(len(scores))
    halves = [gap / 2.0 for gap in _gaps(scores, allowed)]
    rough = _threshold(lambda tau: sum(max(half - tau, 0.0) ** 2 for half in halves))
    support = [half for half in halves if half > rough]
    # On the support the sum is quadratic in tau: spread + n * (mean - tau)**2 = 1.
    mean = sum(support) / len(support)
    spread = sum((half - mean) ** 2 for half in support)
    tau = mean - math.sqrt((1.0 - spread) / len(support))
    return np.array([max(half - tau, 0.0) ** 2 for half in halves])


def _gaps(scores: Array, allowed: Mask) -> list[float]:
    """Each score minus the largest allowed score; -inf if not allowed.

    The weights are the same, because a constant that is added to all scores does not change them.
    """
    pairs = list(zip(scores.tolist(), allowed.tolist(), strict=True))
    peak = max((score for score, ok in pairs if ok), default=0.0)
    return [score - peak if ok else -math.inf for score, ok in pairs]


def _threshold(mass: Callable[[float], float]) -> float:
    """The tau in [-1, 0) where the decreasing function `mass` crosses 1, by bisection."""
    low, high = -1.0, 0.0
    while low < (middle := (low + high) / 2.0) < high:
        if mass(middle) > 1.0:
            low = middle
        else:
            high = middle
    return low
