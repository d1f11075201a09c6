"""Exercise 12: one token at a time, with a cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from headway.check.declaration import Declaration
from headway.check.suspects.steps import RIGHT, Array, Call, Step, Steps
from headway.learn.answer import ALIASES, Answer
from headway.learn.graders.attention_faults import SCALE, of_roles, of_scale, of_softmax
from headway.learn.graders.calls import Watched
from headway.learn.graders.compare import Fault, Inputs, View, agree, compare
from headway.learn.grades import Example, Wrong

QKV = Declaration(kind="qkv")


def up_to(t: int, keys: Array, values: Array) -> tuple[Array, Array]:
    """Return the keys and values that token t attends to."""
    return keys[: t + 1], values[: t + 1]


@dataclass(frozen=True)
class Cached(Steps):
    """The contexts of all tokens, computed one after another."""

    history: Step = up_to

    def __call__(  # type: ignore[override]  # the inputs of the exercise
        self, queries: Array, keys: Array, values: Array
    ) -> Array:
        """Return the contexts (tokens, d_v)."""
        queries, keys, values = self.exchange(queries, keys, values)
        step, rows = replace(self, exchange=RIGHT.exchange), []
        for t, query in enumerate(queries):
            k, v = self.history(t, keys, values)
            call = Call(QKV, (1, len(k)), 1, 1)
            rows.append(Steps.__call__(step, query[None, None], k[None], v[None], call)[0])
        return np.concatenate(rows)


def cases() -> list[dict[str, Any]]:
    """Return inputs of different shapes, the smallest first."""
    random = np.random.default_rng(12)
    return [
        {
            "queries": random.normal(size=(tokens, d)).round(1),
            "keys": random.normal(size=(tokens, d)).round(1),
            "values": random.normal(size=(tokens, d_v)).round(1),
        }
        for tokens, d, d_v in ((3, 2, 2), (4, 2, 3), (6, 4, 2), (3, 3, 3))
    ]


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    scales = [fault for fault in of_scale() if fault.name not in SAME_FOR_ONE_HEAD]
    roles = [fault for fault in of_roles() if fault.name not in NEEDS_ALL_QUERIES]
    axes: dict[Any, str] = {-2: "the queries, of which there is one, instead of the keys"}
    equal = (
        "All weights are equal: queries and keys have no influence, or the keys are not cached. "
    )
    equal += "Use the dot products of the query with all keys as scores."
    softmaxes = [
        replace(fault, message=equal) if fault.name == "equal-weights" else fault
        for fault in of_softmax(axes)
    ]
    return [*of_history(), *scales, *softmaxes, *roles]


SAME_FOR_ONE_HEAD = ("scale-of-all-heads", "scale-of-heads")
NEEDS_ALL_QUERIES = ["weights-transposed", "keys-reshaped", "keys-not-transposed", "residual"]
NEEDS_ALL_QUERIES += ["weights-returned"]
ALONG_FEATURES = r"(concat\w*|cat)\(.*(axis|dim)=(-1|1)\b|hstack|column_stack"
LOOK = r"cache|concat|append|stack|cat\(|past"


def of_history() -> list[Fault]:
    """Return faults of what is kept and read."""
    found = []

    def add(name: str, message: str, history: Step, look: str = LOOK) -> None:
        found.append(Fault(name, message, look, {"history": history}))

    def seen(indices: Step, values: Step | None = None) -> Step:
        def history(t: int, k: Array, v: Array) -> tuple[Array, Array]:
            first, second = [*indices(t)], [*(values or indices)(t)]
            return k[first], v[second]

        return history

    itself = "A token must attend to all earlier tokens and to itself: append its key and its "
    itself += "value to the cache, use the longer arrays, and return them."
    alone = (
        "Each token sees only itself: the cache stays empty, is not read, or holds no values. "
        + itself
    )
    add("only-itself", alone, seen(lambda t: [t]))
    missing = "A token does not see itself: it attends to the cache before its own key and value "
    missing += "are appended. " + itself
    add("misses-itself", missing, seen(lambda t: range(t) if t else [0]))
    add("misses-itself", missing, lambda t, k, v: (k[:t], v[:t]) if t else (k[:1], np.nan * v[:1]))
    add("misses-itself", missing, lambda t, k, v: (k[:t], v[:t]) if t else (k[:1], 0 * v[:1]))
    add(
        "not-extended",
        "A token sees only the first token and itself: the cache is filled once and not extended. "
        + itself,
        seen(lambda t: sorted({0, t})),
    )
    add(
        "only-the-first",
        "A token sees only the first token. Either the cache is not extended, or a mask counts "
        "from the top left: with one query all keys are allowed, so no mask is needed. " + itself,
        seen(lambda t: [0]),
        LOOK + r"|mask|tri",
    )
    add(
        "replaced",
        "A token sees only the previous token and itself: the cache is replaced by the new key and "
        "value, or cut. " + itself,
        seen(lambda t: range(max(t - 1, 0), t + 1)),
    )
    for count in (3, 4, 5):
        add(
            "forgets",
            f"A token sees only the last {count} tokens. " + itself,
            seen(lambda t, count=count: range(max(t + 1 - count, 0), t + 1)),
        )
    add(
        "previous-only",
        "A token sees only the previous one. " + itself,
        seen(lambda t: [max(t - 1, 0)]),
    )
    add(
        "first-hidden",
        "The first token is not seen. " + itself,
        seen(lambda t: range(1, t + 1) if t else [0]),
        LOOK + "|mask|tri",
    )
    add(
        "first-hidden",
        "The first token is not seen. " + itself,
        lambda t, k, v: (k[1 : t + 1], v[1 : t + 1]) if t else (k[:1], np.nan * v[:1]),
        LOOK + "|mask|tri",
    )
    order = "Keys and values are in different orders: one is appended at the end, the other at the "
    order += "start."
    add("order", order, seen(lambda t: range(t, -1, -1), lambda t: range(t + 1)))
    add("order", order, seen(lambda t: [t, *range(t)], lambda t: range(t + 1)))
    twice = "A key and a value are appended twice: once for the context, and once for the returned "
    twice += "cache."
    add("appended-twice", twice, seen(lambda t: [*range(t), *range(t + 1)]))
    add("appended-twice", twice, seen(lambda t: [*range(t + 1), t]))
    first = "The first key and value are appended twice: they fill the empty cache, and then they "
    first += "are appended to it."
    add("appended-twice", first, seen(lambda t: [0, *range(t + 1)]))
    swapped = "Keys and values are exchanged in the cache: they are stored as (values, keys) and "
    swapped += "read as (keys, values)."
    add("cache-exchanged", swapped, alternate)
    add(
        "cache-exchanged",
        swapped,
        lambda t, k, v: (
            np.concatenate([v[:t], k[t : t + 1]]),
            np.concatenate([k[:t], v[t : t + 1]]),
        ),
    )
    add(
        "cache-exchanged",
        "Keys and values are exchanged: the new key is appended to the values, and the new value "
        "to the keys.",
        lambda t, k, v: (
            np.concatenate([k[:1], v[1 : t + 1]]),
            np.concatenate([v[:1], k[1 : t + 1]]),
        ),
    )
    add(
        "scale-of-values",
        "The scores are divided by the square root of the width of the values. Divide by the "
        "square root of the width of the query.",
        lambda t, k, v: (k[: t + 1] * (k.shape[1] / v.shape[1]) ** 0.5, v[: t + 1]),
        SCALE,
    )
    again = "The cached keys are scaled again at each step. Scale the scores instead."
    add(
        "scaled-again",
        again,
        lambda t, k, v: (k[: t + 1] * k.shape[1] ** (np.arange(-t, 1) / 2)[:, None], v[: t + 1]),
    )
    found.append(
        Fault(
            "scaled-again",
            again,
            LOOK,
            {
                "history": lambda t, k, v: (
                    k[: t + 1] * k.shape[1] ** (np.arange(-t - 1, 0) / 2)[:, None],
                    v[: t + 1],
                ),
                "scale": lambda q, k, call: 1.0,
            },
        )
    )
    return found


def of_empty_rows(case: Inputs, view: View) -> Iterator[Fault]:
    """Return the fault that a buffer of zeros is used whole. The first context gives its length."""
    query, key, value = (case[name][0] for name in ("queries", "keys", "values"))
    share = view(case, case["values"].shape)[0] @ value / (value @ value)
    if not 0 < share < 1:
        return
    rows = 1 + round(float(np.exp(query @ key / len(key) ** 0.5) * (1 / share - 1)))

    def history(t: int, keys: Array, values: Array) -> tuple[Array, Array]:
        empty = [np.zeros((rows - t - 1, array.shape[1])) for array in (keys, values)]
        return np.concatenate([keys[: t + 1], empty[0]]), np.concatenate(
            [values[: t + 1], empty[1]]
        )

    message = f"The cache has {rows} rows from the start, and the empty ones get weight: their "
    message += "scores are 0, and exp(0) is 1. Use only the rows that are filled."
    yield Fault("empty-rows", message, LOOK + "|zeros|empty", {"history": history})


def alternate(t: int, keys: Array, values: Array) -> tuple[Array, Array]:
    """Exchange all cached keys and values at each step."""
    if not t:
        return keys[:1], values[:1]
    k, v = alternate(t - 1, keys, values)
    return np.concatenate([v, keys[t : t + 1]]), np.concatenate([k, values[t : t + 1]])


def step(answer: Answer, token: Iterable[Array], cache: Any, shape: tuple[int, ...]) -> Any:
    """Call the answer for one token; return its context and its cache."""
    query, key, value = token
    names, arguments = answer.names(), {"query": query, "key": key, "value": value}
    given = {
        name: arguments[role]
        for role, plural in (("query", "queries"), ("key", "keys"), ("value", "values"))
        for name in names
        if name.lower() in ALIASES[plural] or name.lower() == f"new_{role}"
    }
    others = [name for name in names if name not in given]
    if len(given) == 3 and others:
        result = answer.run(**given, **{others[0]: cache})
    else:
        result = answer.run(query, key, value, cache)
    if not isinstance(result, tuple | list) or len(result) < 2:
        raise Wrong(
            "no-cache",
            "The cache is not returned. Return two results: `return context, cache`.",
            look=r"^return",
        )
    shapes = [tuple(getattr(part, "shape", ())) for part in result]
    if shapes[0] != shape and shapes[1] == shape:
        raise Wrong(
            "result-order",
            "The results are in the wrong order. Return (context, cache).",
            look=r"^return",
        )
    return answer.array(result[0]), result[1]


def run(answer: Answer, inputs: Inputs, axes: int) -> tuple[Array, Any]:
    """Return the contexts of all tokens, and the last cache. axes: before the features."""
    cache, rows = None, []
    for t, token in enumerate(zip(*inputs.values(), strict=True)):
        given = [part.reshape((*(1,) * axes, -1)) for part in token]
        shape = given[2].shape
        try:
            context, cache = step(answer, given, cache, shape)
        except Wrong as wrong:
            if not t:
                raise
            wrong.message = (
                f"in step {t + 1}, with the cache of the step before, {wrong.message}. Keys and "
                "values must both get one row longer in each step."
            )
            if wrong.fault in ("error", "shapes") and re.search(ALONG_FEATURES, answer.source):
                wrong.fault = "concatenate-axis"
                wrong.message += " Concatenate along the tokens (axis=0 of (tokens, d)), not along "
                wrong.message += "the features."
            raise
        if context.size != given[2].size:
            message = f"The context of step {t + 1} has the shape {context.shape}, but it must "
            message += f"have {shape}."
            raise Wrong("shape", message, look=r"@|einsum|sum|return")
        rows.append(context.reshape((1, -1)))
    return np.concatenate(rows), cache


def views(answer: Answer) -> Iterator[View]:
    """Return the ways to call the answer: one token is (1, d), (d,), (1, 1, d) ..."""

    def view(inputs: Inputs, shape: tuple[int, ...], *, axes: int) -> Array:
        return run(answer, inputs, axes)[0]

    for axes in (1, 0, 2, 3):
        yield partial(view, axes=axes)


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched.of(answer)
    answer = watched.answer
    ways, few, more = [*views(answer)], cases()[:3], cases()[3:]
    _grade_second_text(ways, few[0])
    way = compare(
        ways,
        few,
        [Cached()],
        faults(),
        more=more,
        what="context of each step",
        measured=partial(of_empty_rows, few[0]),
    )
    _grade_two_continuations(answer, few[0], (1, 0, 2, 3)[ways.index(way)])
    watched.check()


def _grade_second_text(ways: list[View], case: Inputs) -> None:
    right = Cached()(**case)
    for way in ways:
        try:
            first = way(case, right.shape)
        except Wrong:
            continue
        try:
            is_same = agree(first, way(case, right.shape))
        except Wrong:
            is_same = False
        if not is_same:
            raise Wrong(
                "shared-cache",
                "The same text gives another result when it is started again with cache None: "
                "something is kept between texts, in a global variable or a default argument. "
                "Keep everything in the cache that you return.",
                look=r"global|append|extend|=\[\]|= \[\]|cache",
            )
        return


def _grade_two_continuations(answer: Answer, case: Inputs, axes: int) -> None:
    """Start two continuations from one cache, and then go on with the first of them."""
    start, last = (
        {name: array[part] for name, array in case.items()} for part in (slice(2), slice(2, None))
    )
    known = {"start": (start, run(answer, start, axes)[1])}
    for before, after, sign in (("start", "first", 1), ("start", "second", -1), ("first", "", -1)):
        text, cache = known[before]
        token = {name: sign * array for name, array in last.items()}
        text = {name: np.concatenate([text[name], token[name]]) for name in case}
        right = Cached()(**text)[-1:]
        given = [part.reshape((*(1,) * axes, -1)) for part in token.values()]
        context: Array | Wrong
        try:
            result, cache = step(answer, given, cache, given[2].shape)
            context = result.reshape((1, -1))
        except Wrong as wrong:
            context = wrong
        known[after] = text, cache
        if not agree(context, right):
            yours = None if isinstance(context, Wrong) else context
            raise Wrong(
                "cache-changed",
                "The cache that is passed in is changed. Two continuations may start from the same "
                "cache: make new arrays (concatenate, torch.cat) instead of changing it in place.",
                look=r"append|extend|\+=|cache\[|insert|\] = ",
                example=Example(dict(text), yours, right, (0, 0), "context of a continuation"),
            )
