"""Exercise 4: attention(x, W_query, W_key, W_value)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from headway.check.suspects.steps import Step
from headway.learn.answer import Answer
from headway.learn.graders.attention import OF_SEVERAL_HEADS, Attention, hint, measured
from headway.learn.graders.attention_faults import SCALE, of_roles, of_scale
from headway.learn.graders.calls import COPIES, Watched, of_one_copy
from headway.learn.graders.compare import Array, Fault, View, compare, fault
from headway.learn.graders.faults import of_attention, of_normalization, of_results, without
from headway.learn.graders.modules import modules

MATRICES = ("W_query", "W_key", "W_value")
ONE_MATRIX = ("queries-only", "keys-only", "values-only")  # these are `one-matrix-only`


@dataclass(frozen=True)
class Projections(Attention):
    """The right answer, in steps."""

    project: Step = lambda x, *matrices: tuple(x @ matrix for matrix in matrices)

    def __call__(  # type: ignore[override]  # the inputs of the exercise
        self, x: Array, W_query: Array, W_key: Array, W_value: Array
    ) -> Array:
        """Return the context (tokens, d_out)."""
        return super().__call__(*self.project(x, W_query, W_key, W_value))


def cases(square: bool = False) -> list[dict[str, Array]]:
    """Return inputs, the smallest first. square: those where wrong shapes fit, too."""
    random = np.random.default_rng(4)
    sizes = (3, 4, 2), (3, 2, 2), (4, 3, 2), (6, 3, 2), (2, 4, 5), (5, 4, 4)
    found = []
    for tokens, d_in, d_out in [(3, 3, 3), (4, 4, 4)] if square else sizes:
        digits = 1 if tokens < 5 else 5
        shapes = {"x": (tokens, d_in), **dict.fromkeys(MATRICES, (d_in, d_out))}
        found.append({n: random.normal(size=shape).round(digits) for n, shape in shapes.items()})
    return found


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    later = "There is a causal mask: later tokens are hidden. That is a later chapter; leave it "
    later += "out here."
    return [
        *of_projections(),
        *without(of_scale(), *OF_SEVERAL_HEADS),
        *without(of_normalization(), "sign"),
        *without(of_roles(), *ONE_MATRIX),
        *without(of_attention(), "scale-of-values"),
        *without(of_results("context"), "divided-by-rows"),
        fault("causal-mask", later, "tri|mask|inf", structure=lambda call: call.distance() >= 0),
    ]


def transposed_in_memory(matrix: Array) -> Array:
    """Reshape where a transpose is meant, and transpose back."""
    return matrix.swapaxes(-1, -2).reshape(matrix.shape)


def of_projections() -> list[Fault]:
    """Return faults of the projections."""
    found: list[Fault] = []

    def add(name: str, message: str, *projects: Callable[..., tuple[Any, ...]]) -> None:
        right = "queries = x @ W_query, keys = x @ W_key, values = x @ W_value."
        matrix = next((matrix for matrix in MATRICES if message.startswith(matrix)), "")
        look = matrix or r"@ x\b|\bx\.m?T\b|= x$"
        found.extend(fault(name, f"{message} {right}", look, project=p) for p in projects)

    for number, name in enumerate(MATRICES):
        role = ("queries", "keys", "values")[number]

        def changed(
            change: Callable[[Array, Array], Array], number: int = number
        ) -> Callable[..., tuple[Array, ...]]:
            return lambda x, *w: tuple(
                change(x, matrix) if i == number else x @ matrix for i, matrix in enumerate(w)
            )

        add(
            "no-projection",
            f"The matrix x is used as {role}, without {name}.",
            changed(lambda x, w: x),
        )
        add("matrix-transposed", f"{name} is transposed, and the other matrices are not.",
            changed(lambda x, w: x @ w.swapaxes(-1, -2)))  # fmt: skip
        add("projected-twice", f"{name} is applied twice.", changed(lambda x, w: x @ w @ w))
        add("matrix-as-projection", f"{name} is used without x.", changed(lambda x, w: w))
        add("matrix-added", f"{name} is added to x, or multiplied cell by cell.",
            changed(lambda x, w: x + w), changed(lambda x, w: x * w))  # fmt: skip
        add("matrix-reshaped", f"{name} is reshaped, not transposed.",
            changed(lambda x, w: x @ transposed_in_memory(w)))  # fmt: skip
        add("residual", f"The matrix x is added to the {role}.", changed(lambda x, w: x @ w + x))
    add("matrix-first", "The matrices come first (W @ x), which only works if all sizes are equal.",
        lambda x, q, k, v: (q @ x, k @ x, v @ x))  # fmt: skip
    add("no-projection", "The matrix x is used without the matrices.", lambda x, q, k, v: (x, x, x))
    add("no-projection", "The matrix x is used as queries and keys, without W_query and W_key.",
        lambda x, q, k, v: (x, x, x @ v))  # fmt: skip
    add("no-projection", "The matrix x is used as keys and values, without W_key and W_value.",
        lambda x, q, k, v: (x @ q, x, x))  # fmt: skip
    one = "Only {} is used, for queries, keys and values."
    for number, name in enumerate(MATRICES):
        add("one-matrix-only", one.format(name), lambda x, *w, n=number: (x @ w[n],) * 3)
    found += [
        fault("scale-of-d-in",
              "The scores are divided by the square root of the width of x (d_in). Use the width "
              "of the queries, d_k = W_query.shape[1].", SCALE,
              project=lambda x, q, k, v: (
                  x @ q * (q.shape[-1] / q.shape[-2]) ** 0.5, x @ k, x @ v)),
        fault("scale-of-d-in",
              "The scores are divided by the width of x (d_in). Use the square root of the width "
              "of the queries, d_k = W_query.shape[1].", SCALE,
              project=lambda x, q, k, v: (
                  x @ q * q.shape[-1] ** 0.5 / q.shape[-2], x @ k, x @ v)),
    ]  # fmt: skip
    return found


def views(answer: Answer) -> Iterator[View]:
    """Return the ways to call the answer that are accepted."""
    if answer.is_class:
        yield from modules(answer)
        return
    names = answer.names()
    known = [order_of(name) for name in names[1:4]]
    is_named = sorted(filter(None, known)) == sorted(MATRICES)

    def call(
        inputs: Mapping[str, Any], shape: tuple[int, ...], *, order: Any, turned: bool, batch: int
    ) -> Array:
        matrices = [inputs[name] for name in order]
        if turned:
            matrices = [matrix.swapaxes(-1, -2) for matrix in matrices]
        if len(names) == 2:
            matrices = [np.concatenate(matrices, axis=-2 if turned else -1)]

        def run(x: Array) -> Array:
            return answer.call(x, *matrices, shape=COPIES[:batch] + shape)

        return of_one_copy(run, [inputs["x"]], batch)

    for batch in (0, 1):
        for turned in (False, True):
            for order in [known] if is_named else permutations(MATRICES):
                yield partial(call, order=order, turned=turned, batch=batch)


def qkv_view(view: View, heads: int = 0) -> View:
    """Call an answer with queries, keys and values, for at most as many tokens as features.

    x holds the three of them side by side, and each matrix selects one. heads: give each matrix
    this number of times.
    """

    def call(inputs: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
        queries, keys, values = (inputs[name] for name in ("queries", "keys", "values"))
        width = queries.shape[1]
        values = np.pad(values, ((0, 0), (0, width - values.shape[1])))
        x = np.concatenate([queries, keys, values], axis=1)
        selected = dict(zip(MATRICES, np.split(np.eye(3 * width), 3, axis=1), strict=True))
        if heads:
            selected = {name: np.stack([matrix] * heads) for name, matrix in selected.items()}
        context = view({"x": x, **selected}, (len(x), max(heads, 1) * width))
        parts = np.split(context, max(heads, 1), axis=1)
        if not all(np.allclose(part, parts[0], equal_nan=True) for part in parts):
            raise ValueError("the heads are not side by side")
        return parts[0][:, : shape[1]]

    return call


def order_of(name: str) -> str | None:
    """Return which matrix the name of a parameter means."""
    letters = name.lower().removeprefix("weights").removeprefix("weight").removeprefix("w")
    return {m[2]: m for m in MATRICES}.get(letters.strip("_")[:1])


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched(answer) if answer.is_class else Watched.of(answer)
    compare(
        [*views(watched.answer)],
        cases(),
        [Projections(), replace(Projections(), scale=lambda q, k, call: 1.0)],
        faults(),
        more=cases(square=True),
        what="context",
        measured=lambda view: measured(qkv_view(view), causal=False),
        hint=lambda view: hint(qkv_view(view), causal=False),
    )
    watched.check()
