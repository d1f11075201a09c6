"""The formula of attention in steps, and how answers with queries, keys and values are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from headway.check.suspects.steps import Step, hide, softmax, unchanged
from headway.learn.answer import Answer
from headway.learn.graders.attention_faults import MASK, SCALE
from headway.learn.graders.calls import COPIES, of_one_copy
from headway.learn.graders.compare import Array, Fault, Inputs, View
from headway.learn.grades import Wrong

QKV = ("queries", "keys", "values")
# Faults that are none with one head and one text.
OF_SEVERAL_HEADS = ("scale-of-all-heads", "scale-of-heads", "scale-of-batch")


@dataclass(frozen=True)
class Grid:
    """The cells of the scores, as `check.suspects.steps.Call` describes them.

    shape: the numbers of queries and keys.
    """

    shape: tuple[int, int]
    causal: bool
    heads: int = 1
    scale: float | None = None

    def distance(self) -> Array:
        """Return the position of the query minus that of the key, (queries, keys)."""
        queries, keys = self.shape
        return np.subtract.outer(np.arange(keys - queries, keys), np.arange(keys))

    def structure(self) -> Array:
        """Return which cells are allowed."""
        return np.asarray(self.distance() >= 0) if self.causal else np.ones(self.shape, bool)


@dataclass(frozen=True)
class Attention:
    """Attention; its steps have the names and the arguments of `check.suspects.steps.Steps`."""

    causal: bool = False
    exchange: Step = lambda q, k, v: (q, k, v)
    scores: Step = lambda q, k: q @ k.swapaxes(-1, -2)
    scale: Step = lambda q, k, call: q.shape[-1] ** -0.5
    structure: Step = lambda call: call.structure()
    hide_structure: Step = hide
    normalize: Step = softmax
    drop_structure: Step = unchanged
    mix: Step = np.matmul
    finish: Step = lambda context: context

    def heads(self, queries: Array, keys: Array, values: Array) -> Array:
        """Return the context of arrays (batch, heads, tokens, d)."""
        q, k, v = self.exchange(queries, keys, values)
        shape = (q.shape[-2], k.shape[-2])
        call = Grid(shape, self.causal, q.shape[1])
        scores = self.scores(q, k) * self.scale(q, k, call)
        allowed = self.structure(call)
        scores = self.hide_structure(scores, allowed)
        weights = self.drop_structure(self.normalize(scores), allowed)
        return np.asarray(self.mix(weights, v))

    def __call__(self, queries: Array, keys: Array, values: Array) -> Array:
        """Return the context of one head."""
        context = self.heads(*(array[None, None] for array in (queries, keys, values)))
        return np.asarray(self.finish(context[0, 0]))


def cases(*sizes: tuple[int, int, int]) -> list[dict[str, Array]]:
    """Return queries, keys and values. sizes: tokens, d_k and d_v of each case."""
    random = np.random.default_rng(5)
    return [
        {
            "queries": random.normal(size=(tokens, d_k)).round(1),
            "keys": random.normal(size=(tokens, d_k)).round(1),
            "values": random.normal(size=(tokens, d_v)).round(1),
        }
        for tokens, d_k, d_v in sizes
    ]


def inputs_of(answer: Answer) -> tuple[str, ...] | None:
    """Return the order of queries, keys and values that the names of the parameters say."""
    names = [name.lower() for name in answer.names()[:3]]
    found = tuple(role for name in names for role in QKV if re.match(f"(\\w*_)?{role[0]}", name))
    return found if sorted(found) == sorted(QKV) else None


def views(answer: Answer, axes: Sequence[int] = (0, 1, 2)) -> Iterator[View]:
    """Return calls with queries, keys and values; in any order if their names do not say it."""
    order = inputs_of(answer)
    is_known = order is not None

    def call(inputs: Inputs, shape: tuple[int, ...], *, order: Any, leading: int) -> Array:
        def run(*arrays: Array) -> Array:
            by_name = dict(zip(answer.names(), arrays, strict=False)) if is_known else {}
            given = () if is_known else arrays
            return answer.call(*given, shape=COPIES[:leading] + shape, **by_name)

        return of_one_copy(run, [inputs[name] for name in order], leading)

    for leading in axes:
        for names in [order] if order else permutations(QKV):
            yield partial(call, order=names, leading=leading)


def weights_of(view: View, queries: Array, keys: Array) -> Array | None:
    """Return the weights of an answer, from values that are an identity matrix; None on errors."""
    values = np.eye(len(keys))
    try:
        weights = view({"queries": queries, "keys": keys, "values": values}, values.shape)
    except (Wrong, ValueError, IndexError):
        return None
    return weights if weights.shape == values.shape else None


def measured(view: View, *, causal: bool) -> list[Fault]:
    """Return faults with numbers that are measured from the weights: the scale, the mask.

    The numbers are measured with two tokens. In a causal answer, only the second one sees both.
    """
    of_mask = measured_mask(view) if causal else []
    return [*of_mask, *measured_numbers(view, causal=causal)]


def measured_numbers(view: View, *, causal: bool) -> list[Fault]:
    """Return the faults with another scale, or with another number instead of -inf."""
    random = np.random.default_rng(7)
    factors: dict[int, float] = {}
    hidden, added = [], []
    for d in (2, 3, 4, 5, 6, 8):
        ratios = []
        for _ in range(3):
            queries, keys = random.normal(size=(2, 2, d)) / 2
            weights = weights_of(view, queries, keys)
            if weights is None:
                return []
            scores = queries @ keys.T
            with np.errstate(all="ignore"):
                odds = np.log(weights[:, 1] / weights[:, 0])
            ratios.append(odds[1] / (scores[1, 1] - scores[1, 0]))
            hidden.append(odds[0] + scores[0, 0] * d**-0.5)
            added.append(hidden[-1] - scores[0, 1] * d**-0.5)
        if not np.isfinite(ratios).all() or np.ptp(ratios) > 1e-2 * np.abs(ratios).max():
            return []
        factors[d] = float(np.median(ratios))
    found = [_of_scale(factors)]
    if causal and np.isfinite(hidden).all():
        for number, numbers in ((np.median(hidden), hidden), (np.median(added), added)):
            if np.ptp(numbers) < 1e-2 * abs(number):
                found.append(_of_mask(float(number), is_added=numbers is added))
    return found


def measured_mask(view: View) -> list[Fault]:
    """Return the fault of a causal answer whose tokens see other tokens than they should."""
    random = np.random.default_rng(9)
    seen: dict[int, Array] = {}
    for tokens in (2, 3, 4, 5, 6):
        queries, keys = random.normal(size=(2, tokens, 8)) / 4
        weights = weights_of(view, queries, keys)
        if weights is None or not np.isfinite(weights).all():
            return []
        seen[tokens] = weights > 1e-6
    for cells in seen.values():
        for row, columns in enumerate(cells):
            if columns.any() and not np.array_equal(columns, np.arange(len(cells)) <= row):
                keys = ", ".join(map(str, np.flatnonzero(columns)))
                message = (
                    f"With {len(cells)} tokens, token {row} (counted from 0) attends to {keys}, "
                )
                message += "but it must attend to itself and all earlier ones. Hide only j > i."
                step = {"structure": lambda call: seen[call.shape[0]]}
                return [Fault("mask-wrong", message, MASK, step)]
    return []


def _of_mask(number: float, *, is_added: bool) -> Fault:
    what = f"{number:.4g} is added to the scores" if is_added else f"The score is {number:.4g}"
    message = f"{what} of later tokens, which is not low enough: they still get weight. Use -inf."

    def hide_structure(scores: Array, allowed: Array) -> Array:
        return np.where(allowed, scores, scores + number if is_added else number)

    return Fault("mask-too-small", message, MASK, {"hide_structure": hide_structure})


def _of_scale(factors: dict[int, float]) -> Fault:
    d, factor = next(iter(factors.items()))
    once = "Divide them by sqrt(d_k), once, before the softmax; d_k is queries.shape[-1]."
    if np.ptp(list(factors.values())) < 1e-2 * abs(factor):
        name = "scale-constant"
        message = f"The scores are multiplied by the constant {factor:.4g} for every d_k. {once}"
    else:
        name = "scale-wrong"
        message = f"For d_k = {d} the scores are multiplied by {factor:.4g}, but it must be "
        message += f"1/sqrt({d}) = {d**-0.5:.4g}. {once}"
    step = {"scale": lambda q, k, call: factors.get(q.shape[-1], np.nan)}
    return Fault(name, message, SCALE, step)


def hint(view: View, *, causal: bool) -> str:
    """Say what is known of the weights of an answer."""
    random = np.random.default_rng(8)
    queries, keys = random.normal(size=(2, 4, 4))
    weights = weights_of(view, queries, keys)
    if weights is None:
        return ""
    known = []
    if not np.isfinite(weights).all():
        return "The weights contain NaN or infinity."
    if not np.allclose(weights.sum(axis=-1), 1, atol=1e-3):
        sums = ", ".join(f"{number:.3g}" for number in weights.sum(axis=-1))
        known.append(f"The rows of the weights sum to {sums}, but each must sum to 1.")
        if np.allclose(weights.sum(axis=0), 1, atol=1e-3):
            known.append("The columns sum to 1: is the softmax over the wrong axis?")
    if (weights < -1e-6).any():
        known.append("Some weights are negative.")
    later = np.triu(weights, 1)
    if causal and np.abs(later).max() > 1e-6:
        row, column = np.argwhere(np.abs(later) > 1e-6)[0]
        known.append(f"Token {row} attends to the later token {column}.")
    if causal and not known:
        known.append("No token attends to a later one, and the rows of the weights sum to 1.")
    return " ".join(known)
