"""Exercise 2: scores(x)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.check.suspects.steps import Step, softmax
from headway.learn.answer import Answer
from headway.learn.graders.calls import Watched, views
from headway.learn.graders.compare import Array, Fault, View, compare, fault
from headway.learn.graders.faults import of_results, total, without

LOOK = r"@|matmul|einsum|dot|bmm|\*|sum|mean|norm|cdist|cov|corr"


@dataclass(frozen=True)
class Scores:
    """The right answer, in steps."""

    products: Step = lambda x: x @ x.T
    finish: Step = lambda scores: scores

    def __call__(self, x: Array) -> Array:
        """Return the scores (tokens, tokens)."""
        return np.asarray(self.finish(self.products(x)))


def cases() -> list[dict[str, Array]]:
    """Return inputs, the smallest first."""
    random = np.random.default_rng(2)
    sizes = (2, 3), (3, 2), (4, 3), (3, 3), (6, 3), (5, 8)
    return [{"x": random.normal(size=size).round(1 if size[0] < 5 else 5)} for size in sizes]


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    found: list[Fault] = []
    right = "scores[i, j] is the sum of x[i, k] * x[j, k] over the features k."

    def add(name: str, message: str, *products: Callable[[Array], Any]) -> None:
        found.extend(fault(name, f"{message} {right}", LOOK, products=p) for p in products)

    def each(column: Array) -> Array:
        """Repeat a column for each token."""
        return np.repeat(column, len(column), axis=1)

    def distance(x: Array) -> Array:
        return np.asarray(np.linalg.norm(x[:, None] - x[None], axis=-1))

    def unit(x: Array) -> Array:
        return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))

    add("features-compared", "The product x.T @ x compares features, not tokens.",
        lambda x: x.T @ x)  # fmt: skip
    add("not-transposed", "The second factor is not transposed, which only works for square x.",
        lambda x: x @ x)  # fmt: skip
    add("reshaped", "The second factor is reshaped, not transposed: reshape keeps the order in "
        "memory.", lambda x: x @ x.reshape(x.shape[::-1]))  # fmt: skip
    add("elementwise", "The matrix x is multiplied cell by cell (*), which is not a dot product.",
        lambda x: x * x, lambda x: x * x.T)  # fmt: skip
    add("not-summed", "The products of features are not summed.",
        lambda x: x[:, None] * x[None], lambda x: x[:, :, None] * x[:, None])  # fmt: skip
    add("averaged-over-features",
        "The products of features are averaged (mean), not summed.",
        lambda x: x @ x.T / x.shape[1])  # fmt: skip
    add("summed-over-tokens", "The products are summed over the tokens, not the features.",
        lambda x: (x[:, None] * x[None]).sum(0))  # fmt: skip
    add("own-score-only", "Each row is compared with itself only.",
        lambda x: (x * x).sum(-1), lambda x: total(x * x), lambda x: np.diag((x * x).sum(-1)),
        lambda x: each(total(x * x)), lambda x: each(total(x * x)).T)  # fmt: skip
    add("one-number", "All products are added to one number.",
        lambda x: (x * x).sum(), lambda x: (x @ x.T).sum())  # fmt: skip
    add("outer-product", "The outer product of all numbers is returned.",
        lambda x: np.outer(x, x))  # fmt: skip
    add("cosine", "The rows are divided by their lengths: these are cosines, not dot products.",
        lambda x: unit(x) @ unit(x).T)  # fmt: skip
    add("cosine", "The rows are divided by their lengths: 1 - cosine is a distance.",
        lambda x: 1 - unit(x) @ unit(x).T)  # fmt: skip
    add("cosine", "One of the factors is divided by its length.",
        lambda x: unit(x) @ x.T, lambda x: x @ unit(x).T)  # fmt: skip
    add("distance", "These are distances between rows, not dot products.",
        distance, lambda x: -distance(x), lambda x: distance(x) ** 2, lambda x: -distance(x) ** 2,
        lambda x: 1 / (1 + distance(x)), lambda x: np.exp(-distance(x)),
        lambda x: np.exp(-distance(x) ** 2),
        lambda x: np.abs(x[:, None] - x[None]).sum(-1),
        lambda x: -np.abs(x[:, None] - x[None]).sum(-1))  # fmt: skip
    add("differences", "These are differences of rows, not products.",
        lambda x: (x[:, None] - x[None]).sum(-1), lambda x: x[:, None] - x[None])  # fmt: skip
    add("added", "The features are added, not multiplied.",
        lambda x: (x[:, None] + x[None]).sum(-1))  # fmt: skip
    add("sums-multiplied", "The features are summed before the product.",
        lambda x: total(x) * total(x).T, lambda x: each(total(x)).T)  # fmt: skip
    add("maximum", "The largest product of features is used, not the sum.",
        lambda x: (x[:, None] * x[None]).max(-1))  # fmt: skip
    add("correlation", "These are correlations or covariances: the mean is subtracted.",
        lambda x: np.corrcoef(x), lambda x: np.cov(x), lambda x: np.corrcoef(x.T),
        lambda x: np.cov(x.T))  # fmt: skip
    add("centered", "The mean is subtracted from x first.",
        lambda x: (c := x - x.mean(0)) @ c.T,
        lambda x: (c := x - x.mean(1, keepdims=True)) @ c.T)  # fmt: skip
    add("scaled", "The scores are divided by sqrt(d). That is a later chapter.",
        lambda x: x @ x.T / x.shape[1] ** 0.5)  # fmt: skip
    add("softmax-added", "A softmax is applied. That is the next chapter: return the scores.",
        lambda x: softmax(x @ x.T / x.shape[1] ** 0.5), lambda x: softmax(x @ x.T, 0))  # fmt: skip
    add("last-feature-missing", "The last feature is left out: the loop is too short.",
        lambda x: x[:, :-1] @ x[:, :-1].T)  # fmt: skip
    add("first-feature-missing", "The first feature is left out: the loop starts at 1.",
        lambda x: x[:, 1:] @ x[:, 1:].T)  # fmt: skip
    add("overwritten", "Only the last feature is used: the sum is overwritten. Use += in the loop.",
        lambda x: x[:, -1:] @ x[:, -1:].T)  # fmt: skip
    add("first-feature-only", "Only the first feature is used: the loop ends too early.",
        lambda x: x[:, :1] @ x[:, :1].T)  # fmt: skip
    add("last-token-missing", "The last token is left out: the loop is too short.",
        lambda x: (x @ x.T) * np.outer(i := np.arange(len(x)) < len(x) - 1, i),
        lambda x: (x @ x.T) * (np.arange(len(x)) < len(x) - 1),
        lambda x: (x @ x.T)[:-1, :-1], lambda x: (x @ x.T)[:, :-1])  # fmt: skip
    add("one-query-only",
        "All rows are compared with the same row: the query is fixed.",
        lambda x: x @ x[:1].T, lambda x: x @ x[1:2].T,
        lambda x: each(x @ x[1:2].T), lambda x: each(x @ x[1:2].T).T)  # fmt: skip
    add("neighbors-only", "Each row is compared with the next one only.",
        lambda x: (x[:-1] * x[1:]).sum(-1), lambda x: (x * np.roll(x, -1, 0)).sum(-1))  # fmt: skip
    add("reversed", "One of the factors has its rows in reversed order.",
        lambda x: x @ x[::-1].T, lambda x: x @ x[:, ::-1].T)  # fmt: skip
    add("squared", "The dot products are squared.", lambda x: (x @ x.T) ** 2)
    add("applied-twice", "The matrix of scores is multiplied once more.",
        lambda x: (x @ x.T) @ (x @ x.T), lambda x: x @ x.T @ x)  # fmt: skip
    add("exponential", "The exponential is applied. That is the next chapter: return the scores.",
        lambda x: np.exp(x @ x.T), lambda x: np.exp(x @ x.T / x.shape[1] ** 0.5))  # fmt: skip
    add("lengths", "The lengths of the rows are multiplied, not the rows.",
        lambda x: np.outer(n := np.linalg.norm(x, axis=1), n))  # fmt: skip
    add("rows-shifted", "One of the indices is shifted: each row is compared with wrong ones.",
        lambda x: np.roll(x @ x.T, 1, 1), lambda x: np.roll(x @ x.T, -1, 1),
        lambda x: np.roll(x @ x.T, 1, 0), lambda x: np.roll(x @ x.T, -1, 0))  # fmt: skip
    add("divided-by-maximum", "The scores are divided by the largest one.",
        lambda x: (x @ x.T) / (x @ x.T).max(),
        lambda x: (x @ x.T) / (x @ x.T).max(-1, keepdims=True))  # fmt: skip
    add("sums-instead", "The sums of rows are returned, not dot products.",
        lambda x: x.sum(-1), lambda x: total(x))  # fmt: skip
    add("x-returned", "The matrix x is returned as it is.", lambda x: x)
    add("x-returned", "The matrix x is transposed, but not multiplied.", lambda x: x.T)
    add("not-reset", "The sum is not set to 0 for each pair: it also contains earlier ones.",
        lambda x: (x @ x.T).cumsum(1),
        lambda x: (x @ x.T).cumsum().reshape(len(x), -1))  # fmt: skip
    add("equality", "Rows are tested for equality, not multiplied.",
        lambda x: np.eye(len(x)))  # fmt: skip
    for name, message, finish in (
        ("upper-half-only", "Only pairs with j >= i are computed; the others are 0.", np.triu),
        ("upper-half-only", "Only pairs with j > i are computed; the others are 0.",
         lambda s: np.triu(s, 1)),
        ("lower-half-only", "Only pairs with j <= i are computed; the others are 0.", np.tril),
        ("lower-half-only", "Only pairs with j < i are computed; the others are 0.",
         lambda s: np.tril(s, -1)),
        ("own-score-missing", "The diagonal is 0: a token is also compared with itself.",
         lambda s: s * (1 - np.eye(len(s)))),
        ("own-score-missing", "The diagonal is -inf: a token is also compared with itself.",
         lambda s: np.where(np.eye(len(s)) > 0, -np.inf, s)),
        ("own-score-missing", "The diagonal is 1: a token is also compared with itself.",
         lambda s: np.where(np.eye(len(s)) > 0, 1, s)),
    ):  # fmt: skip
        found.append(fault(name, f"{message} {right}", LOOK, finish=finish))
    symmetric = ("transposed", "reshaped", "features-summed", "features-averaged")
    return [*found, *without(of_results("matrix of scores"), *symmetric)]


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched.of(answer)
    what = "matrix of scores"
    compare([*views(watched.answer)], cases(), [Scores()], faults(), what=what, measured=measured)
    watched.check()


def measured(view: View) -> list[Fault]:
    """Return the fault of an answer that is right outside of the diagonal."""

    def products(x: Array) -> Array:
        return np.where(np.eye(len(x)) > 0, view({"x": x}, (len(x), len(x))), x @ x.T)

    message = "Only the diagonal is wrong. scores[i, i] is the dot product of x[i] with itself."
    return [fault("diagonal", message, "diag|eye|triu|tril|i [!=]= j", products=products)]
