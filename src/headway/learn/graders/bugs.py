"""Exercises 15 to 20: code with a bug. The grader says what goes wrong, and never names the bug."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from headway.check.suspects.steps import remove, softmax, unchanged
from headway.learn.answer import Answer
from headway.learn.graders import fused
from headway.learn.graders.attention import Attention
from headway.learn.graders.compare import Array, Inputs, agree, wrong_cells
from headway.learn.graders.positions import Rotary
from headway.learn.grades import Example, Wrong

Call = Callable[[Inputs], Array]
CAUSAL = Attention(causal=True)


@dataclass(frozen=True)
class Bug:
    """A function with a bug.

    right, broken: the function without and with it. observations: functions of a call and inputs
    that return what is seen to go wrong, or "".
    """

    cases: list[dict[str, Any]]
    right: Callable[..., Array]
    broken: Callable[..., Array]
    observations: tuple[Callable[[Call, Inputs], str], ...]


def attend(formula: Attention, queries: Array, keys: Array, values: Array) -> Array:
    """Return the context of one head or of several heads."""
    q, k, v = (x.reshape((1, -1, *x.shape[-2:])) for x in (queries, keys, values))
    return formula.heads(q, k, v).reshape((*queries.shape[:-1], values.shape[-1]))


def rotated(first: bool, queries: Array, keys: Array, values: Array) -> Array:
    """Return the context with rotary positions. first: queries count from the first position."""
    offset = 0 if first else len(keys) - len(queries)
    turn = Rotary(positions=lambda tokens: np.arange(offset, offset + tokens))
    return attend(CAUSAL, turn(queries), Rotary()(keys), values)


def unscaled(queries: Array, keys: Array, values: Array) -> Array:
    """Return the context without the scale if there are more than 4 tokens."""
    factor = 1.0 if len(queries) <= 4 else queries.shape[1] ** 0.5
    return attend(CAUSAL, queries * factor, keys, values)


def cases(*shapes: tuple[int, ...], new: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Return queries, keys and values. new: the numbers of queries, if there are fewer."""
    random = np.random.default_rng(15)
    names = ("queries", "keys", "values")
    found = [{name: random.normal(size=shape).round(1) for name in names} for shape in shapes]
    for case, count in zip(found, new, strict=False):
        case["queries"] = case["queries"][-count:]
    return found


def sums(call: Call, case: Inputs) -> str:
    """All values 1."""
    result = call({**case, "values": np.ones_like(case["values"])})
    cell = tuple(np.argwhere(wrong_cells(result, np.ones_like(result)))[:1].ravel().tolist())
    if not cell:
        return ""
    return (
        "If all values are 1, the context must be 1 everywhere, but at "
        f"{list(cell)} it is {result[cell]:.3g}."
    )


def future(call: Call, case: Inputs) -> str:
    """A change of the last token."""
    changed = {**case}
    for name in ("keys", "values", "x"):
        if name in case:
            changed[name] = case[name].copy()
            changed[name][..., -1, :] += 1.0
    before, after = call(case)[..., :-1, :], call(changed)[..., :-1, :]
    if agree(after, before):
        return ""
    return "If only the last token changes, rows of earlier tokens change. They must not."


def prefix(call: Call, case: Inputs) -> str:
    """The first tokens alone."""
    short = {name: array[:3] for name, array in case.items()}
    if len(case["keys"]) <= 3 or agree(call(case)[:3], call(short)):
        return ""
    return (
        f"The first three rows of a text of {len(case['keys'])} tokens must equal those of its "
        "first three tokens alone, but they do not."
    )


def alone(call: Call, case: Inputs) -> str:
    """The last query alone."""
    whole = {**case, "queries": case["keys"]}
    last = {**whole, "queries": case["keys"][-1:]}
    if agree(call(whole)[-1:], call(last)):
        return ""
    return (
        "The row of the last token is another one if it is computed alone, with the keys and "
        "values of the whole text."
    )


def repeated(call: Call, case: Inputs) -> str:
    """The same call twice."""
    first = call(case)
    if all(agree(call(case), first) for _ in range(8)):
        return ""
    return "The same call gives another result the next time, with training=False."


BUGS: Mapping[str, Bug] = {
    "bug-1": Bug(
        cases((1, 2, 2), (2, 3, 2), (3, 4, 5)),
        partial(attend, CAUSAL),
        partial(attend, replace(CAUSAL, normalize=lambda scores: softmax(scores, -2))),
        (sums, future),
    ),
    "bug-2": Bug(
        cases((2, 2), (3, 2), (5, 4)),
        partial(attend, CAUSAL),
        partial(attend, replace(CAUSAL, hide_structure=unchanged, drop_structure=remove)),
        (future, sums),
    ),
    "bug-3": Bug(
        fused.cases()[:3],
        fused.Multihead(),
        fused.Multihead(
            split=lambda packed, heads: packed.reshape((1, heads, packed.shape[1], -1))
        ),
        (future,),
    ),
    "bug-4": Bug(
        cases((3, 4), (3, 2), (5, 4), (6, 6), new=(1, 3, 2, 6)),
        partial(rotated, False),
        partial(rotated, True),
        (alone, sums, future),
    ),
    "bug-5": Bug(
        cases((5, 2), (3, 2), (4, 3), (7, 4)),
        partial(attend, CAUSAL),
        unscaled,
        (prefix, sums, future),
    ),
    "bug-6": Bug(
        [{**case, "training": False} for case in cases((2, 2), (4, 3), (8, 4))],
        lambda training, **inputs: attend(CAUSAL, **inputs),
        lambda training, **inputs: attend(CAUSAL, **inputs) * np.nan,  # it is random
        (repeated, sums, future),
    ),
}


def grade(name: str, answer: Answer) -> None:
    """Raise `Wrong` if the function of the exercise `name` still has a bug."""
    bug = BUGS[name]

    def call(inputs: Inputs) -> Array:
        shape = (*(inputs["queries"] if "queries" in inputs else inputs["x"]).shape[:-1],)
        width = (inputs["values"] if "values" in inputs else inputs["W_output"]).shape[-1]
        return answer.call_named(inputs, (*shape, width))

    with np.errstate(all="ignore"):
        results = [call(case) for case in bug.cases]
        right = [bug.right(**case) for case in bug.cases]
        if not all(map(agree, results, right)):
            broken = [bug.broken(**case) for case in bug.cases]
            raise _wrong(bug, call, results, right, is_same=all(map(agree, results, broken)))
        seen = _observed(bug, call)
    if seen:
        raise Wrong("not-fixed", f"The bug is still there. {seen}")
    if "training" in bug.cases[0]:
        _grade_training(call)


def _wrong(
    bug: Bug, call: Call, results: list[Array], right: list[Array], *, is_same: bool
) -> Wrong:
    case, yours, expected = next(
        triple for triple in zip(bug.cases, results, right, strict=True)
        if not agree(triple[1], triple[2])
    )  # fmt: skip
    cell = None
    where = f"The result has the shape {yours.shape}, but it must have {expected.shape}."
    if yours.shape == expected.shape:
        cell = tuple(map(int, np.argwhere(wrong_cells(yours, expected))[0]))
        where = f"In the smallest example, {list(cell)} is {yours[cell]:.4g}, but it must be "
        where += f"{expected[cell]:.4g}."
    seen = _observed(bug, call) if cell is not None else ""
    inputs = {name: np.asarray(value) for name, value in case.items()}
    is_same = is_same or seen.startswith("The same call")
    start = "The bug is still there." if is_same else "The code has changed, but it is still wrong."
    return Wrong(
        "not-fixed" if is_same else "other",
        " ".join(filter(None, [start, seen, where])),
        example=Example(inputs, yours, expected, cell, "result"),
    )


def _observed(bug: Bug, call: Call) -> str:
    return next(filter(None, _all_observed(bug, call)), "")


def _all_observed(bug: Bug, call: Call) -> Iterator[str]:
    for observe in bug.observations:
        for case in bug.cases:
            try:
                yield observe(call, case)
            except Wrong:  # the answer does not run with other inputs
                yield ""


def _grade_training(call: Call) -> None:
    """Raise `Wrong` if not a tenth of the weights is dropped. Each token attends only to itself."""
    tokens = 64
    rows = 30 * np.eye(tokens)
    case = {"queries": rows, "keys": rows, "values": np.ones_like(rows), "training": True}
    results = np.stack([call(case) for _ in range(8)])
    kept = results[results > 0.01]
    seen = ""
    if kept.size == results.size:
        seen = "nothing is dropped"
    elif np.ptp(results, axis=-1).max() > 0.01:
        seen = "all values are 1, but the features of a row differ"
    elif not 0.04 < 1 - kept.size / results.size < 0.16:
        seen = f"{1 - kept.size / results.size:.0%} of the weights are dropped, not a tenth"
    elif np.abs(kept - 1 / 0.9).max() > 0.01:
        seen = f"a weight of 1 that is kept becomes {kept.max():.3g}, but its mean over many calls "
        seen += "must stay 1"
    if seen:
        raise Wrong(
            "other", f"The code has changed, but it is still wrong. With training=True {seen}."
        )
