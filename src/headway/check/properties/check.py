"""What a check is, and what several of them look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.check.findings import Outcome
from headway.check.subjects import Subject

ALL = ("qkv", "self", "model")


@dataclass(frozen=True)
class Check:
    """One property that attention must have.

    promise: what holds when it passes. kinds, needs: the kinds of subject and the features
    without which it has no meaning. applies: None, or why it has none for this subject.
    look: a regular expression for the lines of source where the bug would be.
    """

    promise: str
    run: Callable[[Subject], Outcome]
    kinds: tuple[str, ...] = ALL
    needs: tuple[str, ...] = ()
    applies: Callable[[Subject], str | None] = lambda subject: None
    look: str = r"attn|attention|softmax|matmul|@|einsum"


def order_free(subject: Subject) -> str | None:
    """For checks that treat the tokens as a set."""
    if subject.order_free:
        return None
    return "it is causal or knows positions, so its tokens are no set"


def weights_alone(subject: Subject) -> str | None:
    """For checks of kind "self" that must see the attention without anything around it."""
    if subject.declared.block:
        return "a block: a residual path and an MLP stand around the attention"
    return order_free(subject) if subject.kind == "self" else None


def can_be_causal(subject: Subject) -> str | None:
    """For checks of what a causal mask does."""
    if subject.always_causal or subject.causal:
        return None
    return "neither causal=True nor the feature 'causal' is declared"


def gap(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, as a share of the largest wanted number; infinite for NaN."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    if not found.size:
        return 0.0
    largest = np.abs(wanted).max()
    return float(np.abs(found - wanted).max() / (largest if largest > 0 else 1.0))


def influence(subject: Subject, tokens: int, **options: Any) -> np.ndarray:
    """How much each token's output (row) changes with each token's contents (column)."""
    if options == subject.causal and tokens in subject.influences:
        return subject.influences[tokens]
    inputs = subject.inputs(tokens)
    base = subject.run(inputs, **options)
    found = np.zeros((tokens, tokens))
    for token in range(tokens):
        other = subject.run(subject.changed(inputs, [token]), **options)
        change = np.abs(other - base).max(axis=-1).reshape((-1, tokens)).max(axis=0)
        found[:, token] = np.where(np.isfinite(change), change, np.inf)
    found = np.asarray(found / max(np.abs(base).max(), 1e-30))
    if options == subject.causal:
        subject.influences[tokens] = found
    return found


def floor(subject: Subject) -> float:
    """What counts as no influence: the rounding of a few operations."""
    return 64 * float(np.finfo(subject.dtype).eps)


def few(subject: Subject, most: int = 7) -> int:
    """A number of tokens that it can take, and that is no size of another axis."""
    return min(most, subject.longest)


def wrong_sums(subject: Subject) -> str | None:
    """What the weights' sums say about the softmax, in words; None if they say nothing."""
    over_queries = "the softmax runs over the query axis: columns, not rows, sum to 1"
    if subject.kind == "qkv":
        tokens = min(6, subject.declared.head_dim, subject.longest)
        weights = subject.weights(subject.inputs(tokens))
        if gap(weights.sum(axis=-1), np.ones(weights.shape[:-1])) < subject.tolerance:
            return None
        for axis, said in (
            (-2, over_queries),
            (1, "the softmax runs over the heads: heads, not rows, sum to 1"),
            (0, "the softmax runs over the batch: batch rows, not rows, sum to 1"),
        ):
            sums = weights.sum(axis=axis)
            if gap(sums, np.ones_like(sums)) < subject.tolerance:
                return said
    elif subject.kind == "self" and subject.always_causal and not subject.declared.block:
        # Equal tokens have equal scores. So a column of a causal softmax over the queries holds
        # 1 / (tokens - key), and row q sums to 1/tokens + ... + 1/(tokens - q); masked after a
        # softmax over the keys, row q sums to (q + 1) / tokens.
        tokens = few(subject)
        (x,) = subject.inputs(1, batch=1)
        steps = np.diff(subject.run([np.repeat(x, tokens, axis=1)])[0], axis=0)
        if np.abs(steps).max() <= floor(subject):
            return None
        for said, sums in (
            (over_queries, np.cumsum(1 / (tokens - np.arange(tokens)))),
            ("the mask comes after the softmax, without a new sum", np.arange(tokens) / tokens),
        ):
            wanted = np.diff(sums)[:, None]
            if gap(steps, wanted / wanted[0] * steps[0]) < subject.tolerance:
                return said
    return None


def shown(number: float) -> str:
    """A number, short."""
    return f"{number:.3g}"
