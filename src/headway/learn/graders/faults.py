"""Faults of single steps, which several exercises share."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.learn.graders.compare import Array, Fault, fault

SOFTMAX_LINE = r"softmax|exp\(|sum\(|max\("


def softmax(scores: Array, axis: Any = -1) -> Array:
    """Return the softmax; a row with all scores -inf gives NaN."""
    exponentials = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=axis, keepdims=True))


def unchanged(array: Array, *others: Any) -> Array:
    """Leave a step out."""
    return array


def finite(scores: Array) -> Array:
    """Replace -inf by 0."""
    return np.where(np.isfinite(scores), scores, 0.0)


def total(array: Array) -> Array:
    """Return the sum of each row."""
    return np.asarray(array.sum(axis=-1, keepdims=True))


def across(array: Array) -> Array:
    """Turn one number per row into one per column, as broadcasting without keepdims does."""
    return array.swapaxes(-1, -2)


def exp(scores: Array) -> Array:
    """Return exponentials of the scores minus the largest of their row."""
    return np.asarray(np.exp(scores - scores.max(axis=-1, keepdims=True)))


def softmax_faults() -> list[Fault]:
    """Return faults of the step `softmax`."""
    axis = "axis=-1 (dim=-1)"

    def add(name: str, message: str, *steps: Any) -> None:
        found.extend(fault(name, message, SOFTMAX_LINE, softmax=step) for step in steps)

    found: list[Fault] = []
    add(
        "softmax-axis",
        "The softmax runs over the wrong axis: the columns of your weights sum to 1, but each row "
        f"must. Use {axis}.",
        lambda s: softmax(s, -2),
        lambda s: np.nan_to_num(softmax(s, -2)),
    )
    add(
        "softmax-all",
        "The softmax runs over the whole matrix: all weights together sum to 1, but each row must. "
        f"Give the sum and the maximum {axis} and keepdims=True.",
        lambda s: softmax(s, (-2, -1)),
    )
    return found
