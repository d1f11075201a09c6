"""Exercise 10: batches of texts of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headway.check.declaration import Declaration
from headway.check.suspects.steps import Array, Call, Step, Steps, remove, softmax
from headway.learn.answer import Answer
from headway.learn.graders.attention_faults import (
    MASK,
    SCALE,
    low,
    misapplied,
    of_causal,
    of_roles,
    of_scale,
    of_softmax,
)
from headway.learn.graders.calls import Watched
from headway.learn.graders.compare import Fault, Inputs, View, agree, compare, fault
from headway.learn.grades import Example, Wrong

QKV = Declaration(kind="qkv")
LENGTHS = r"length|pad|" + MASK


def padding(lengths: Array, tokens: int) -> Array:
    """Return which keys are tokens of the text, (batch, tokens)."""
    return np.arange(tokens) < lengths[:, None]


@dataclass(frozen=True)
class Batches(Steps):
    """The right answer, in steps. zero: the rows of padded tokens are 0, which is also right."""

    split: Step = lambda packed, heads: packed
    merge: Step = lambda context: context
    padding: Step = padding
    zero: bool = False

    def __call__(  # type: ignore[override]  # the inputs of the exercise
        self, queries: Array, keys: Array, values: Array, lengths: Array
    ) -> Array:
        """Return the context (batch, heads, tokens, d)."""
        heads, tokens = queries.shape[1:3]
        given = self.padding(lengths, tokens)[:, None, None, :]
        call = Call(QKV, (tokens, tokens), heads, heads, causal=True, given=given)
        context = Steps.__call__(self, queries, keys, values, call)
        if self.zero:
            context = np.where(padding(lengths, tokens)[:, None, :, None], context, 0.0)
        return np.asarray(context)


RIGHT = Batches()
WITHOUT_INFINITY = Batches(hide_structure=low, hide_given=low)
FORMULAS = [one for f in (RIGHT, WITHOUT_INFINITY) for one in (f, replace(f, zero=True))]


def cases() -> list[dict[str, Any]]:
    """Return inputs, the smallest first; in the last ones all sizes are equal."""
    random = np.random.default_rng(10)
    return [
        {
            **{name: random.normal(size=shape).round(1) for name in ("queries", "keys", "values")},
            "lengths": np.array(lengths),
        }
        for shape, lengths in (
            ((2, 1, 3, 2), (3, 2)),
            ((3, 2, 4, 3), (4, 1, 3)),
            ((2, 3, 5, 4), (2, 4)),
            ((2, 2, 2, 2), (2, 1)),
            ((3, 3, 3, 3), (1, 3, 2)),
        )
    ]


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    axes: dict[Any, str] = {-2: "the queries", 1: "the heads", 0: "the texts of the batch"}
    axes[(-2, -1)] = "all queries and keys together"
    return [
        *of_padding(),
        *of_both_masks(),
        *of_causal(),
        *of_scale(),
        fault(
            "scale-of-batch",
            "The scores are divided by the square root of the batch size. Use the number of "
            "features of one head.",
            SCALE,
            scale=lambda q, k, call: q.shape[0] ** -0.5,
        ),
        *of_softmax(axes),
        *misapplied("padding", "padding mask", "padded keys", "hide_given", "drop_given"),
        *of_roles(),
        *of_axes(),
    ]


def of_padding() -> list[Fault]:
    """Return faults of the padding mask."""
    found = []
    right = "In text b, hide the keys with the number lengths[b] and later: key_number < "
    right += "lengths[b, None] is (batch, tokens), and [:, None, None, :] adds the axes of heads "
    right += "and queries."

    def add(name: str, message: str, **steps: Any) -> None:
        found.append(Fault(name, f"{message} {right}", LENGTHS, steps))

    def add_all(name: str, message: str, **steps: Any) -> None:
        """Add a mask that can leave a row without keys."""
        add(name, message, **steps)
        add(name, message, **steps, normalize=lambda scores: np.nan_to_num(softmax(scores)))

    def by(change: Callable[[Array, int], Array]) -> Step:
        return lambda lengths, tokens: padding(change(lengths, tokens), tokens)

    add("no-padding", "There is no padding mask: padded keys get weight.", given=lambda call: None)
    add(
        "padding-zero",
        "Padded keys and values are set to 0, but exp(0) is 1, so that in the rows of padded "
        "tokens padded keys still get weight, and the weights of the others no longer sum to 1.",
        hide_given=lambda scores, allowed: np.where(allowed | (scores < -1e8), scores, 0.0),
        drop_given=remove,
    )
    add_all(
        "padding-reversed",
        "The meaning of the padding mask is reversed: the tokens of the text are hidden, and "
        "padded ones are not. Exchange < and >=, or True and False.",
        given=lambda call: ~call.given,
    )
    add_all(
        "padding-of-queries",
        "The padding mask hides queries, so that the rows of padded tokens have no key at all. "
        "Hide keys only.",
        given=lambda call: call.given.swapaxes(-1, -2),
    )
    add(
        "lengths-off-by-one",
        "One padded key still gets weight.",
        padding=by(lambda lengths, tokens: lengths + 1),
    )
    add_all(
        "lengths-off-by-one",
        "The last token of each text is hidden, too.",
        padding=by(lambda lengths, tokens: lengths - 1),
    )
    for name, change in (
        ("the first text", lambda lengths, tokens: 0 * lengths + lengths[0]),
        ("the last text", lambda lengths, tokens: 0 * lengths + lengths[-1]),
        ("the longest text", lambda lengths, tokens: 0 * lengths + lengths.max()),
        ("the shortest text", lambda lengths, tokens: 0 * lengths + lengths.min()),
        ("another text", lambda lengths, tokens: np.roll(lengths, 1)),
        ("another text", lambda lengths, tokens: lengths[::-1]),
    ):
        add(
            "lengths-of-another-text",
            f"All texts get the length of {name}."
            if name != "another text"
            else "A text gets the length of another one.",
            padding=by(change),
        )
    add_all(
        "padding-at-the-start",
        "The mask hides keys at the start of the texts, but they are padded at the end.",
        padding=lambda lengths, tokens: padding(lengths, tokens)[:, ::-1],
    )
    shape = "The padding mask has the wrong axes, which only works if sizes happen to be equal."
    for axes in (
        lambda given: given[:, 0, 0],
        lambda given: given[:, 0],
        lambda given: given[:, 0, 0, :, None, None],
        lambda given: given[:, 0, 0, None, :],
        lambda given: given[:, 0, 0, :, None],
    ):
        add_all("padding-axes", shape, given=lambda call, axes=axes: axes(call.given))
    add(
        "padding-of-first-head",
        "The padding mask is applied in the first head only.",
        given=lambda call: call.given | (np.arange(call.heads) > 0)[:, None, None],
    )
    add(
        "padding-of-first-text",
        "The padding mask is applied in the first text only.",
        given=lambda call: call.given | (np.arange(len(call.given)) > 0)[:, None, None, None],
    )
    add(
        "only-the-last-length",
        "Only the key at lengths[b] is hidden.",
        given=lambda call: np.roll(call.given, 1, axis=-1) <= call.given,
    )
    return found


def of_both_masks() -> list[Fault]:
    """Return faults of the causal mask and the padding mask in one."""
    one = {"structure": lambda call: call.structure() & call.given, "given": lambda call: None}
    names = ("masks", "mask (causal and padding)", "hidden keys")
    found = [
        replace(fault, steps={**one, **fault.steps})
        for fault in misapplied(*names, "hide_structure", "drop_structure")
    ]
    reverse = "The mask (causal and padding) is reversed: what it allows is hidden, and what it "
    reverse += "hides is allowed. Exchange True and False, for example with ~mask."
    both = "Both masks must allow a key: combine `causal` and `real` with &, or `future` and "
    both += "`padded` with |."
    for name, message, allowed in (
        ("masks-reversed", reverse, lambda call: ~(call.structure() & call.given)),
        ("masks-combined", both, lambda call: call.structure() | call.given),
    ):
        steps = {**one, "structure": allowed}
        for other in (
            {},
            {"hide_structure": low},
            {"normalize": lambda scores: np.nan_to_num(softmax(scores))},
        ):
            found.append(Fault(name, message, LENGTHS, {**steps, **other}))
    return found


def of_axes() -> list[Fault]:
    """Return faults of the axes of batch, heads and tokens."""
    found = []

    def add(name: str, message: str, **steps: Any) -> None:
        look = r"transpose|swapaxes|permute|\.T|reshape|view|einsum"
        found.append(Fault(name, message, look, steps))

    every = "{} reverses all axes of an array with four axes. Swap the last two only: "
    every += "swapaxes(-1, -2)."
    add(
        "all-axes-reversed",
        every.format(".T"),
        exchange=lambda q, k, v: (q, k.T.swapaxes(-1, -2), v),
    )
    wrong = "The keys have the wrong axes swapped. Swap the last two: swapaxes(-1, -2)."
    for first, second in ((0, 1), (1, 2), (0, 2), (0, 3), (1, 3)):
        add(
            "keys-axes",
            wrong,
            exchange=lambda q, k, v, first=first, second=second: (
                q,
                k.swapaxes(first, second).swapaxes(-1, -2),
                v,
            ),
        )
    add(
        "texts-mixed",
        "A text reads the values of another text of the batch.",
        mix=lambda w, v: w @ np.roll(v, 1, axis=0),
    )
    add("texts-mixed", "All texts read the values of the first text.", mix=lambda w, v: w @ v[:1])
    add(
        "texts-mixed",
        "All texts read the keys of the first text.",
        exchange=lambda q, k, v: (q, k[:1] + 0 * k, v),
    )
    add("texts-mixed", "All texts use the weights of the first text.", mix=lambda w, v: w[:1] @ v)
    add(
        "weights-shared",
        "All heads use the weights of the first head. Each head has its own.",
        mix=lambda w, v: w[:, :1] @ v,
    )
    add(
        "weights-shared",
        "The weights are averaged over the heads. Each head has its own.",
        mix=lambda w, v: w.mean(axis=1, keepdims=True) @ v,
    )
    for axis, name in ((1, "heads"), (0, "texts")):
        for is_causal in (False, True):
            add(
                "axes-exchanged",
                f"The axes of {name} and tokens are exchanged: {name} attend to each other, and "
                "tokens do not. The arrays are (batch, heads, tokens, d).",
                split=lambda packed, heads, axis=axis: packed.swapaxes(axis, 2),
                merge=lambda context, axis=axis: context.swapaxes(axis, 2),
                structure=lambda call, axis=axis, is_causal=is_causal: np.tri(
                    call.heads if axis else len(call.given), k=0 if is_causal else 99, dtype=bool
                ),
                given=lambda call: None,
            )
    return found


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched.of(answer)
    answer = watched.answer

    def view(inputs: Inputs, shape: tuple[int, ...]) -> Array:
        result = answer.call_named(inputs, shape)
        right = RIGHT(**inputs)
        real = padding(inputs["lengths"], shape[2])[:, None, :, None]
        if result.shape != shape or not agree(np.where(real, result, 0), np.where(real, right, 0)):
            return result
        changed = {
            name: np.where(real, inputs[name], 3 - inputs[name]) for name in ("keys", "values")
        }
        again = answer.call_named({**inputs, **changed}, shape)
        # What the rows of padded tokens hold does not matter, as long as no padded key has weight:
        # the weights of the others sum to 1, or the row does not depend on the values.
        sums = answer.call_named({**inputs, "values": np.ones_like(inputs["values"])}, shape)
        is_complete = np.isclose(sums, 1, atol=1e-4) | np.isclose(sums, result, atol=1e-6)
        is_right = np.isfinite(result).all() and agree(result, again) and is_complete.all()
        return right if is_right else result

    few, more = cases()[:3], cases()[3:]
    compare([view], few, FORMULAS, faults(), more=more, what="context", hint=_of_padded_rows)
    _grade_empty_text(answer)
    watched.check()


def _of_padded_rows(view: View) -> str:
    """Say if only the rows of padded tokens are wrong."""
    for case in cases()[:3]:
        right = RIGHT(**case)
        real = padding(case["lengths"], right.shape[2])[:, None, :, None]
        if not agree(np.where(real, view(case, right.shape), 0), np.where(real, right, 0)):
            return ""
    return "The rows of real tokens are right, but in those of padded tokens padded keys take part."


def _grade_empty_text(answer: Answer) -> None:
    case = {**cases()[0], "lengths": np.array([2, 0])}
    with np.errstate(all="ignore"):
        right = Batches(zero=True)(**case)
    try:
        result = answer.call_named(case, right.shape)
    except Wrong as wrong:
        wrong.message = f"For a text of the length 0 {wrong.message}"
        raise
    if result.shape != right.shape or not np.isfinite(result).all():
        raise Wrong(
            "nan-for-empty-text",
            "A text of the length 0 gives NaN: all its scores are -inf, and the softmax divides 0 "
            "by 0. Use a large negative number instead of -inf, or replace NaN by 0.",
            look=LENGTHS,
            example=Example(case, result, right, None, "context"),
        )
    if not agree(result[0, :, :2], right[0, :, :2]):
        raise Wrong(
            "empty-text",
            "If the second text has the length 0, the result of the first text is wrong.",
            look=LENGTHS,
            example=Example(case, result, right, None, "context"),
        )
