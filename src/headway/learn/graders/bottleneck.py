"""Exercise 1: context(weights, x)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.check.suspects.steps import Step, softmax
from headway.learn.answer import Answer
from headway.learn.graders.calls import Watched, views
from headway.learn.graders.compare import Array, Fault, compare, fault
from headway.learn.graders.faults import of_results, total

LOOK = r"@|matmul|einsum|dot|bmm|\*|sum|mean|norm|cdist|cov|corr"


@dataclass(frozen=True)
class Context:
    """The right answer, in steps."""

    mix: Step = np.matmul
    finish: Step = lambda context: context

    def __call__(self, weights: Array, x: Array) -> Array:
        """Return the context (tokens, d)."""
        return np.asarray(self.finish(self.mix(weights, x)))


def cases(square: bool = False) -> list[dict[str, Array]]:
    """Return inputs, the smallest first. In the last one, rows of weights do not sum to 1.

    square: the cases where wrong shapes fit, too.
    """
    random = np.random.default_rng(1)
    sizes = [(3, 3), (4, 4)] if square else [(2, 3), (3, 2), (4, 3), (6, 3), (5, 4), (3, 2)]
    found = []
    for number, (tokens, d) in enumerate(sizes, 1):
        weights = random.dirichlet(np.ones(tokens), tokens).round(1)
        weights[:, -1] += 1 - weights.sum(axis=1)
        x = random.normal(size=(tokens, d)).round(1)
        if number == len(sizes):
            weights, x = random.normal(size=(tokens, tokens)), random.normal(size=(tokens, d))
        found.append({"weights": weights, "x": x})
    return found


def in_place(weights: Array, x: Array) -> Array:
    """Return what an answer computes that stores each row of the result in x."""
    x = x.copy()
    for i, row in enumerate(weights):
        x[i] = row @ x
    return x


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    found: list[Fault] = []
    right = "Row i of the result is the sum of weights[i, j] * x[j] over all j."

    def add(name: str, message: str, *mixes: Callable[[Array, Array], Any]) -> None:
        found.extend(fault(name, f"{message} {right}", LOOK, mix=mix) for mix in mixes)

    add("factors-exchanged", "The factors are exchanged: x @ weights.", lambda w, x: x @ w)
    add("weights-transposed",
        "The weights are used as columns (weights.T, or weights[j, i] in a loop).",
        lambda w, x: w.T @ x)  # fmt: skip
    add("weights-transposed",
        "The weights are used as columns, and divided by the sums of these columns.",
        lambda w, x: w.T / total(w.T) @ x)  # fmt: skip
    add("weights-transposed + last-token-missing",
        "The weights are used as columns, and the last row of x is left out.",
        lambda w, x: w[:-1].T @ x[:-1])  # fmt: skip
    add("in-place", "The rows of x are overwritten while later rows still need them: the result "
        "is the array x itself. Write the result to a new array.", in_place)  # fmt: skip
    add(
        "weights-transposed",
        "The product x.T @ weights uses the weights as columns.",
        lambda w, x: x.T @ w,
    )
    add(
        "x-transposed",
        "The matrix x is transposed, which only works if d = tokens.",
        lambda w, x: w @ x.T,
    )
    add("both-transposed", "Both weights and x are transposed.", lambda w, x: w.T @ x.T)
    add("elementwise",
        "The weights and x are multiplied cell by cell (*), without a sum over the tokens.",
        lambda w, x: w * x, lambda w, x: w.T * x, lambda w, x: w * x.T)  # fmt: skip
    add("not-summed", "The products of weights and rows of x are not summed over the tokens.",
        lambda w, x: w[:, :, None] * x[None], lambda w, x: w[:, :, None] * x[:, None],
        lambda w, x: w.T[:, :, None] * x[None])  # fmt: skip
    add("summed-over-features",
        "The products of weights and rows of x are summed over the features, not the tokens.",
        lambda w, x: (w[:, :, None] * x[None]).sum(-1),
        lambda w, x: (w[:, :, None] * x[:, None]).sum(-1))  # fmt: skip
    add("own-row-only", "Each row of x is multiplied by the sum of a row or column of weights.",
        lambda w, x: total(w) * x, lambda w, x: total(w.T) * x)  # fmt: skip
    add("own-row-only", "Each row of x is multiplied by one weight only.",
        lambda w, x: np.diag(w)[:, None] * x, lambda w, x: w[:, :1] * x,
        lambda w, x: w[:1].T * x, lambda w, x: w[:, -1:] * x)  # fmt: skip
    add("weights-unused", "The rows of x are averaged without the weights.",
        lambda w, x: np.broadcast_to(x.mean(0), x.shape), lambda w, x: x.mean(0),
        lambda w, x: x.mean(0, keepdims=True))  # fmt: skip
    add("weights-unused", "The rows of x are added without the weights.",
        lambda w, x: np.broadcast_to(x.sum(0), x.shape), lambda w, x: x.sum(0),
        lambda w, x: x.sum(0, keepdims=True))  # fmt: skip
    add("weights-unused", "The matrix x is returned as it is.", lambda w, x: x)
    add("x-unused", "The weights are returned.", lambda w, x: w)
    add("cumulative-average", "The rows of x are averaged up to the token, without the weights.",
        lambda w, x: x.cumsum(0) / np.arange(1, len(x) + 1)[:, None])  # fmt: skip
    add("largest-weight-only", "Only the row of x with the largest weight is used (argmax).",
        lambda w, x: x[w.argmax(-1)])  # fmt: skip
    add("largest-weight-only", "Only the row of x with the largest weight is used (max).",
        lambda w, x: x[w.argmax(-1)] * w.max(-1, keepdims=True))  # fmt: skip
    add("maximum", "The largest product over the tokens is used, not the sum.",
        lambda w, x: (w[:, :, None] * x[None]).max(1))  # fmt: skip
    add("overwritten",
        "Only the last row of x is used: the sum is overwritten. Use += in the loop.",
        lambda w, x: w[:, -1:] * x[-1:])  # fmt: skip
    add("first-token-only", "Only the first row of x is used: the loop ends too early.",
        lambda w, x: w[:, :1] * x[:1])  # fmt: skip
    add("last-token-missing", "The last row of x is left out: the loop is too short.",
        lambda w, x: w[:, :-1] @ x[:-1])  # fmt: skip
    add("first-token-missing", "The first row of x is left out: the loop starts at 1.",
        lambda w, x: w[:, 1:] @ x[1:])  # fmt: skip
    add("own-token-missing", "The token itself is left out (i != j).",
        lambda w, x: (w * (1 - np.eye(len(w)))) @ x)  # fmt: skip
    add("earlier-tokens-only", "Only earlier tokens are used.",
        lambda w, x: np.tril(w) @ x, lambda w, x: np.tril(w, -1) @ x)  # fmt: skip
    add("later-tokens-only", "Only later tokens are used.",
        lambda w, x: np.triu(w) @ x, lambda w, x: np.triu(w, 1) @ x)  # fmt: skip
    add("weights-applied-twice", "The weights are applied twice.",
        lambda w, x: w @ w @ x, lambda w, x: w**2 @ x)  # fmt: skip
    add("weights-normalized",
        "The weights are divided by their sums first. Use them as they are.",
        lambda w, x: w / total(w) @ x, lambda w, x: w / w.sum(0) @ x,
        lambda w, x: w @ x / total(w))  # fmt: skip
    add("softmax-added", "A softmax is applied to the weights. They are weights already.",
        lambda w, x: softmax(w) @ x, lambda w, x: softmax(w, -2) @ x)  # fmt: skip
    add("residual", "The matrix x is added to the result.", lambda w, x: w @ x + x)
    add("added", "The weights and x are added, not multiplied.",
        lambda w, x: w + x, lambda w, x: (w[:, :, None] + x[None]).sum(1))  # fmt: skip
    add("x-normalized", "The rows of x are divided by their length first.",
        lambda w, x: w @ (x / np.linalg.norm(x, axis=-1, keepdims=True)))  # fmt: skip
    return [*found, *of_results("context")]


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched.of(answer)
    compare(
        [*views(watched.answer)],
        cases(),
        [Context()],
        faults(),
        more=cases(square=True),
        what="context",
    )
    watched.check()
