"""The class `Check`, and helpers that several checks share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from headway.check.findings import Outcome
from headway.check.subject import Subject

ALL = ("qkv", "self", "model")
BLOCK = "there is a residual connection or an MLP around the attention"


@dataclass(frozen=True)
class Check:
    """One property that attention must have.

    promise: the property. kinds: the kinds of attention that it checks. needs: the features that
    must be declared. applies: returns None, or the reason why it does not apply to a subject.
    look: a regular expression for source lines that may contain the bug.
    """

    run: Callable[[Subject], Outcome]
    promise: str
    kinds: tuple[str, ...] = ALL
    needs: tuple[str, ...] = ()
    applies: Callable[[Subject], str | None] = lambda subject: None
    look: str = r"attn|attention|softmax|matmul|@|einsum"

    @property
    def name(self) -> str:
        """The name of the function, with hyphens."""
        return self.run.__name__.replace("_", "-")


def promises(promise: str, *kinds: str, **options: Any) -> Callable[..., Check]:
    """Return a decorator that makes a function a `Check`.

    kinds: by default all. options: the other fields of `Check`.
    """
    return partial(Check, promise=promise, kinds=kinds or ALL, **options)


def order_free(subject: Subject) -> str | None:
    """Return the reason why a check that permutes tokens does not apply, or None."""
    if subject.declared.order_free:
        return None
    return "it is causal or has positions, so the order of its tokens matters"


def weights_alone(subject: Subject) -> str | None:
    """Return the reason why a check of the weights alone does not apply, or None."""
    if subject.declared.block:
        return BLOCK
    return order_free(subject) if subject.kind == "self" else None


def can_be_causal(subject: Subject) -> str | None:
    """Return the reason why a check of the causal mask does not apply, or None."""
    if subject.declared.always_causal or subject.causal_options:
        return None
    return "neither causal=True nor the feature 'causal' is declared"


def gap(output: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected value; inf for NaN."""
    if output.shape != expected.shape or not np.isfinite(output).all():
        return float("inf")
    if not output.size:
        return 0.0
    largest = np.abs(expected).max()
    return float(np.abs(output - expected).max() / (largest if largest > 0 else 1.0))


def influence(subject: Subject, tokens: int, **options: Any) -> np.ndarray:
    """Return how much each token's output (row) changes with each token's contents (column)."""
    if options == subject.causal_options and tokens in subject.influences:
        return subject.influences[tokens]
    inputs = subject.inputs(tokens)
    base = subject.run(inputs, **options)
    changes = np.zeros((tokens, tokens))
    for token in range(tokens):
        other = subject.run(subject.changed(inputs, [token]), **options)
        change = np.abs(other - base).max(axis=-1).reshape((-1, tokens)).max(axis=0)
        changes[:, token] = np.where(np.isfinite(change), change, np.inf)
    changes = np.asarray(changes / max(np.abs(base).max(), 1e-30))
    if options == subject.causal_options:
        subject.influences[tokens] = changes
    return changes


def wrong_sums(subject: Subject) -> str | None:
    """Return a diagnosis if the sums of the weights show a wrong normalization, else None."""
    over_queries = "the softmax runs over the query axis: columns, not rows, sum to 1"
    if subject.kind == "qkv":
        tokens = min(6, subject.declared.head_dim, subject.longest)
        weights = subject.weights(subject.inputs(tokens))
        if gap(weights.sum(axis=-1), np.ones(weights.shape[:-1])) < subject.tolerance:
            return None
        for axis, description in (
            (-2, over_queries),
            (1, "the softmax runs over the heads: heads, not rows, sum to 1"),
            (0, "the softmax runs over the batch: batch rows, not rows, sum to 1"),
        ):
            sums = weights.sum(axis=axis)
            if gap(sums, np.ones_like(sums)) < subject.tolerance:
                return description
    elif subject.kind == "self" and subject.declared.always_causal and not subject.declared.block:
        # Equal tokens have equal scores. With a causal softmax over the queries each weight of a
        # column is 1 / (tokens - key), so row q sums to 1/tokens + ... + 1/(tokens - q). With a
        # mask after a softmax over the keys, row q sums to (q + 1) / tokens.
        tokens = subject.few_tokens
        (x,) = subject.inputs(1, batch=1)
        steps = np.diff(subject.run([np.repeat(x, tokens, axis=1)])[0], axis=0)
        if np.abs(steps).max() <= subject.noise:
            return None
        for description, sums in (
            (over_queries, np.cumsum(1 / (tokens - np.arange(tokens)))),
            (
                "the mask comes after the softmax, and the rows are not normalized again",
                np.arange(tokens) / tokens,
            ),
        ):
            expected = np.diff(sums)[:, None]
            if gap(steps, expected / expected[0] * steps[0]) < subject.tolerance:
                return description
    return None


def digits(number: float) -> str:
    """Format a number with three digits."""
    return f"{number:.3g}"
