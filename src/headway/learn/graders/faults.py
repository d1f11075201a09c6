"""More faults of single steps. Their names and arguments are those of `attention_faults`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from headway.check.suspects.steps import remove, softmax, unchanged
from headway.learn.graders.attention_faults import (
    MASK,
    MAXIMUM,
    OTHER_AXIS,
    ROLES,
    SCALE,
    SOFTMAX,
    SUM,
    of_softmax,
)
from headway.learn.graders.compare import Array, Fault, fault


def finite(scores: Array) -> Array:
    """Replace -inf by 0."""
    return np.where(np.isfinite(scores), scores, 0.0)


def total(array: Array) -> Array:
    """Return the sum of each row."""
    return np.asarray(array.sum(axis=-1, keepdims=True))


def exponentials(scores: Array) -> Array:
    """Return exponentials, the largest of each row being 1."""
    return np.asarray(np.exp(scores - scores.max(axis=-1, keepdims=True)))


def across(array: Array) -> Array:
    """Turn one number per row into one per column, as broadcasting without keepdims does."""
    return array.swapaxes(-1, -2)


def without(faults: list[Fault], *names: str) -> list[Fault]:
    """Leave out faults that are none in an exercise, or that have another name there."""
    return [fault for fault in faults if fault.name not in names]


def of_normalization() -> list[Fault]:
    """Return faults of the softmax in the step `normalize`."""
    found = of_softmax({-2: "each column, not each row", (-2, -1): "the whole matrix"})

    def add(name: str, message: str, *steps: Callable[[Array], Array], look: str = SOFTMAX) -> None:
        found.extend(fault(name, message, look, normalize=step) for step in steps)

    for copies in (2, 3):  # as many as in `calls.COPIES`
        for hidden in (np.nan, 0.0):
            add(
                "softmax-axis",
                "The softmax runs over an axis of the batch, so that the rows of the weights do "
                "not sum to 1. Use the last axis, the keys: axis=-1 (dim=-1).",
                partial(_equal, number=1 / copies, hidden=hidden),
            )
    keepdims = "Without keepdims, NumPy and PyTorch divide each column, not each row. Write "
    keepdims += "keepdims=True (keepdim=True in PyTorch)."
    add(
        "no-keepdims",
        f"The sums of the rows have lost an axis. {keepdims}",
        lambda s: np.exp(s) / across(total(np.exp(s))),
        lambda s: exponentials(s) / across(total(exponentials(s))),
        look=SUM,
    )
    add(
        "max-without-keepdims",
        "The maxima of the rows are subtracted from the columns. Write keepdims=True "
        "(keepdim=True in PyTorch).",
        lambda s: (e := np.exp(s - across(s.max(axis=-1, keepdims=True)))) / total(e),
        look=MAXIMUM,
    )
    add(
        "no-keepdims",
        f"The maxima and the sums of the rows have lost an axis. {keepdims}",
        lambda s: (e := np.exp(s - across(s.max(axis=-1, keepdims=True)))) / across(total(e)),
    )
    add(
        "max-axis",
        "The maximum of each column is subtracted, which changes the weights of a row. Subtract "
        "the maximum of each row: axis=-1, keepdims=True.",
        lambda s: (e := np.exp(s - s.max(axis=-2, keepdims=True))) / total(e),
        look=MAXIMUM,
    )
    for axes, name in ((-2, "each column"), ((-2, -1), "the whole matrix")):
        add(
            "sum-axis",
            f"The maximum is taken of each row, but the sum over {name}. Use axis=-1 and "
            "keepdims=True in both.",
            partial(_divided_by_sum, axes=axes),
            look=SUM,
        )
    add(
        "sum-axis",
        "The maximum is taken of each column, and the sum over the whole matrix. Use axis=-1 and "
        "keepdims=True in both.",
        lambda s: (
            (e := np.exp(s - s.max(axis=-2, keepdims=True))) / e.sum(axis=(-2, -1), keepdims=True)
        ),
        look=OTHER_AXIS,
    )
    add(
        "maximum-in-one",
        "The maximum is subtracted in the denominator only. Subtract it from the scores first, and "
        "use the same exponentials above and below.",
        lambda s: np.exp(s) / total(exponentials(s)),
    )
    add(
        "maximum-in-one",
        "The maximum is subtracted in the numerator only. Subtract it from the scores first, and "
        "use the same exponentials above and below.",
        lambda s: exponentials(s) / total(np.exp(s)),
    )
    add(
        "exponential-of-sum",
        "The exponentials are divided by the exponential of the sum of the scores. Take the "
        "exponentials first, then their sum.",
        lambda s: np.exp(s) / np.exp(total(s)),
        lambda s: (t := s - s.max(axis=-1, keepdims=True), np.exp(t) / np.exp(total(t)))[1],
    )
    add(
        "sum-not-reset",
        "The sum of the exponentials is not set to 0 for each row: it also contains earlier rows.",
        lambda s: np.exp(s) / total(np.exp(s)).cumsum(axis=-2),
        lambda s: exponentials(s) / total(exponentials(s)).cumsum(axis=-2),
    )
    add(
        "softmax-off-by-one",
        "A number of 1 is added to the sum of the exponentials. Remove it.",
        lambda s: exponentials(s) / (1 + total(exponentials(s))),
    )
    add(
        "sum-axis",
        "Each row is divided by the sum of a column. Sum each row: axis=-1, keepdims=True.",
        lambda s: np.exp(s) / across(np.exp(s).sum(axis=-2, keepdims=True)),
        lambda s: (e := exponentials(s)) / across(e.sum(axis=-2, keepdims=True)),
        look=SUM,
    )
    add(
        "mean-not-sum",
        "The exponentials are divided by their mean. Divide them by their sum.",
        lambda s: (e := exponentials(s)) / e.mean(axis=-1, keepdims=True),
    )
    add(
        "divided-by-maximum",
        "The scores are divided by the largest one, without exponentials. Use exp(score) / sum.",
        lambda s: s / s.max(axis=-1, keepdims=True),
        lambda s: s / s.max(axis=(-2, -1), keepdims=True),
    )
    add(
        "exponentials-of-quotients",
        "The scores are divided before the exponential. Take the exponential first, then divide by "
        "the sum of the exponentials.",
        lambda s: np.exp(s / total(s)),
        lambda s: np.exp(s / total(np.exp(s))),
        lambda s: (t := s - s.max(axis=-1, keepdims=True), np.exp(t / total(np.exp(t))))[1],
        lambda s: softmax(s / total(s)),
        lambda s: softmax(s / s.max(axis=-1, keepdims=True)),
        lambda s: softmax(s / np.abs(s).max(axis=-1, keepdims=True)),
    )
    add(
        "divided-by-count",
        "The exponentials are divided by the number of scores in a row. Divide by their sum.",
        lambda s: np.exp(s) / s.shape[-1],
        lambda s: exponentials(s) / s.shape[-1],
    )
    add(
        "softmax-axis + log-softmax",
        "Logarithms over the wrong axis are returned (log_softmax). Use the softmax with axis=-1.",
        lambda s: np.log(softmax(s, -2)),
    )
    add(
        "denominator-without-exp",
        "The exponentials are divided by the sum of the scores. Divide them by the sum of the "
        "exponentials.",
        lambda s: np.exp(s) / total(finite(s)),
        lambda s: exponentials(s) / total(finite(s)),
        lambda s: (t := s - s.max(axis=-1, keepdims=True), np.exp(t) / total(finite(t)))[1],
    )
    add(
        "numerator-without-exp",
        "The scores, not their exponentials, are divided by the sum of the exponentials.",
        lambda s: s / total(np.exp(s)),
        lambda s: (s - s.max(axis=-1, keepdims=True)) / total(exponentials(s)),
    )
    add(
        "inverted",
        "The quotient is upside down: the sum is divided by the exponentials.",
        lambda s: total(np.exp(s)) / np.exp(s),
    )
    add(
        "min-max",
        "The scores are shifted and divided (minimum 0, maximum 1), without exponentials. Use "
        "exp(score) / sum.",
        lambda s: (
            (t := finite(s) - finite(s).min(axis=-1, keepdims=True)) / t.max(axis=-1, keepdims=True)
        ),
        lambda s: (t := finite(s) - finite(s).min(axis=-1, keepdims=True)) / total(t),
        lambda s: (s - s.min()) / (s.max() - s.min()),
    )
    add(
        "standardized",
        "The scores are standardized (mean 0, deviation 1) instead of turned into probabilities. "
        "Use exp(score) / sum.",
        lambda s: (s - s.mean(axis=-1, keepdims=True)) / s.std(axis=-1, keepdims=True),
        lambda s: softmax((s - s.mean(axis=-1, keepdims=True)) / s.std(axis=-1, keepdims=True)),
    )
    add(
        "divided-by-length",
        "The rows are divided by their length (the square root of the sum of squares), so that "
        "they do not sum to 1. Use exp(score) / sum.",
        lambda s: s / np.sqrt(total(s**2)),
        lambda s: (e := exponentials(s)) / np.sqrt(total(e**2)),
    )
    add(
        "no-exponential",
        "There are no exponentials: the scores are made positive (square, absolute value or relu) "
        "and divided by their sum. Use exp(score) / sum.",
        lambda s: np.abs(finite(s)) / total(np.abs(finite(s))),
        lambda s: finite(s) ** 2 / total(finite(s) ** 2),
        lambda s: np.maximum(finite(s), 0) / total(np.maximum(finite(s), 0)),
        lambda s: np.maximum(finite(s), 0) / (total(np.maximum(finite(s), 0)) + 1e-9),
    )
    add(
        "sigmoid",
        "The weights are sigmoids divided by their sum. Use exp(score) / sum.",
        lambda s: (e := 1 / (1 + np.exp(-s))) / total(e),
    )
    add(
        "softplus",
        "The weights use log(1 + exp(score)). Use exp(score).",
        lambda s: (e := np.log1p(np.exp(s))) / total(e),
        lambda s: np.log1p(np.exp(s)),
    )
    add(
        "sign",
        "The sign of the scores is wrong: the largest score gets the smallest weight. Use "
        "exp(score), not exp(-score).",
        lambda s: softmax(np.where(np.isfinite(s), -finite(s), -np.inf)),
        lambda s: softmax(-finite(s)),
    )
    add(
        "log-softmax",
        "The weights are logarithms of the softmax. Return exp(...) of them.",
        lambda s: s - np.log(total(np.exp(s))),
    )
    add(
        "logsumexp-wrong",
        "The logarithm of the sum is not subtracted inside the exponential. exp(score - "
        "log(sum(exp(scores)))) is right.",
        lambda s: np.exp(s) - np.log(total(np.exp(s))),
        lambda s: exponentials(s) / np.log(total(exponentials(s))),
    )
    add(
        "softmax-base",
        "The powers have another base than e. Use exp.",
        lambda s: softmax(s * np.log(10)),
    )
    add(
        "argmax",
        "The result holds a 1 for the largest score and 0 for all others. The softmax gives every "
        "score some weight.",
        lambda s: (s == s.max(axis=-1, keepdims=True)).astype(float),
        lambda s: (s == s.max()).astype(float),
    )
    add(
        "equal-weights",
        "All weights of a row are equal: the scores have no influence.",
        lambda s: np.full(s.shape, 1 / s.shape[-1]),
        lambda s: np.where(np.isfinite(s), 1.0, 0.0),
    )
    add(
        "cumulative",
        "The sums are cumulative (cumsum). Divide each row by its whole sum.",
        lambda s: (e := exponentials(s)) / e.cumsum(axis=-1),
        lambda s: softmax(s).cumsum(axis=-1),
    )
    add(
        "ranked",
        "The weights are sorted: they are not at the positions of their scores.",
        lambda s: np.sort(softmax(s), axis=-1),
        lambda s: np.sort(softmax(s), axis=-1)[..., ::-1],
    )
    add("one-minus", "The result is 1 - softmax.", lambda s: 1 - softmax(s))
    add(
        "maximum-outside",
        "The maximum is subtracted from the exponentials. Subtract it from the scores, inside the "
        "exponential: np.exp(scores - maximum).",
        lambda s: (e := np.exp(s) - s.max(axis=-1, keepdims=True)) / total(e),
        lambda s: np.exp(s) - s.max(axis=-1, keepdims=True),
        lambda s: (e := np.exp(s) - np.exp(s).max(axis=-1, keepdims=True)) / total(e),
    )
    return found


def _divided_by_sum(scores: Array, *, axes: Any) -> Array:
    e = exponentials(scores)
    return np.asarray(e / e.sum(axis=axes, keepdims=True))


def _equal(scores: Array, *, number: float, hidden: float) -> Array:
    return np.where(np.isfinite(scores), number, hidden)


def of_results(what: str, rows: str = "token") -> list[Fault]:
    """Return faults of the step `finish`: the result is right, but something is done to it."""
    found: list[Fault] = []

    def add(name: str, message: str, *steps: Callable[[Array], Any]) -> None:
        found.extend(fault(name, message, "return", finish=step) for step in steps)

    add("transposed", f"The {what} is transposed. Return it with one row per {rows}.",
        lambda r: r.swapaxes(-1, -2))  # fmt: skip
    add("first-row-only", f"Only the first row is returned. Return one row per {rows}.",
        lambda r: r[0], lambda r: r[:1])  # fmt: skip
    add("last-row-only", f"Only the last row is returned. Return one row per {rows}.",
        lambda r: r[-1], lambda r: r[-1:])  # fmt: skip
    add("second-row-only", f"Only the second row is returned. Return one row per {rows}.",
        lambda r: r[1], lambda r: r[1:2])  # fmt: skip
    add("same-row", f"All rows are equal: each is the result of the first {rows}.",
        lambda r: np.broadcast_to(r[:1], r.shape))  # fmt: skip
    add("same-row", f"All rows are equal: each is the result of the last {rows}. "
        "If a loop appends one array again and again, append a copy of it.",
        lambda r: np.broadcast_to(r[-1:], r.shape))  # fmt: skip
    early = "The loop ends after the first row: the other rows are 0. Is `return` indented too far?"
    add("loop-ends-early", early,
        lambda r: np.concatenate([r[:1], np.zeros_like(r[1:])]))  # fmt: skip
    add("loop-too-short", "The loop does not reach the last row: it is 0. Use range(n).",
        lambda r: np.concatenate([r[:-1], np.zeros_like(r[-1:])]))  # fmt: skip
    add("loop-too-short", "The loop does not compute the first row: it is 0. Use range(n).",
        lambda r: np.concatenate([np.zeros_like(r[:1]), r[1:]]))  # fmt: skip
    add("only-last-row-filled", "Only the last row is filled: the others are 0.",
        lambda r: np.concatenate([np.zeros_like(r[:-1]), r[-1:]]))  # fmt: skip
    add("not-reset", "The sum is not set to 0 for each row: each row also contains earlier ones.",
        lambda r: r.cumsum(axis=0))  # fmt: skip
    add("rows-reversed", "The rows are in reversed order.", lambda r: r[::-1])
    add("one-column-only", f"Only the first column of the {what} is filled: the others are 0.",
        lambda r: np.where(np.arange(r.shape[-1]) == 0, r, 0))  # fmt: skip
    add("one-column-only", f"Only the last column of the {what} is filled: the others are 0.",
        lambda r: np.where(np.arange(r.shape[-1]) == r.shape[-1] - 1, r, 0))  # fmt: skip
    add("rows-summed", f"The rows are added to a single one. Return one row per {rows}.",
        lambda r: r.sum(axis=0), lambda r: r.sum(axis=0, keepdims=True))  # fmt: skip
    add("rows-averaged", f"The rows are averaged to a single one. Return one row per {rows}.",
        lambda r: r.mean(axis=0), lambda r: r.mean(axis=0, keepdims=True))  # fmt: skip
    add("features-summed", "The rows are summed to single numbers. Do not sum the result.",
        lambda r: r.sum(axis=-1), lambda r: r.sum(axis=-1, keepdims=True), np.sum)  # fmt: skip
    add("features-averaged", "The rows are averaged to single numbers. Do not average the result.",
        lambda r: r.mean(axis=-1), lambda r: r.mean(axis=-1, keepdims=True), np.mean)  # fmt: skip
    add("flattened", f"The {what} is flattened. Return a matrix with one row per {rows}.", np.ravel)
    axis = f"The {what} has an additional axis of length 1. Remove it, for example with [0]."
    add("additional-axis", axis, lambda r: r[None], lambda r: r[..., None],
        lambda r: np.expand_dims(r, 1))  # fmt: skip
    add("rounded", f"The {what} is rounded. Return all digits.",
        *(partial(np.round, decimals=n) for n in range(4)))  # fmt: skip
    add("integers", f"The {what} is converted to integers, which removes the digits after the "
        "decimal point. Use an array of floating-point numbers.", np.trunc)  # fmt: skip
    add("sign-of-result", f"The sign of the {what} is wrong.", np.negative)
    add("absolute", f"The {what} has lost its sign (abs).", np.abs)
    add("relu", f"Negative numbers of the {what} are set to 0 (relu).", lambda r: np.maximum(r, 0))
    add("doubled", f"The {what} is twice too large: something is added twice.", lambda r: 2 * r)
    add("halved", f"The {what} is half as large as it must be. Do not divide it.", lambda r: r / 2)
    add("divided-by-rows", f"The {what} is divided by the number of rows. Do not divide it.",
        lambda r: r / len(r))  # fmt: skip
    add("softmax-added", f"A softmax is applied to the {what}. Return it without.",
        softmax)  # fmt: skip
    add("tanh-added", f"tanh is applied to the {what}. Return it without.", np.tanh)
    add("reshaped", f"The {what} is reshaped, not transposed: the numbers are in the order of "
        "memory, not of rows.",
        lambda r: r.swapaxes(-1, -2).reshape(r.shape))  # fmt: skip
    add("normalized-result", f"The rows of the {what} are divided by their sum.",
        lambda r: r / total(r))  # fmt: skip
    add("normalized-result", f"The rows of the {what} are divided by their length.",
        lambda r: r / np.linalg.norm(r, axis=-1, keepdims=True))  # fmt: skip
    add("layer-norm", f"The rows of the {what} are standardized (layer norm).",
        lambda r: (r - r.mean(-1, keepdims=True)) / r.std(-1, keepdims=True))  # fmt: skip
    add("zeros", f"The {what} is 0 everywhere: the results are not stored.",
        np.zeros_like)  # fmt: skip
    return found


def of_attention() -> list[Fault]:
    """Return more faults of the scores, the scale and the roles of queries, keys and values."""
    found: list[Fault] = []

    def add(name: str, message: str, look: str = ROLES, **steps: Any) -> None:
        found.append(fault(name, message, look, **steps))

    once = "Divide the scores by sqrt(d_k), once, before the softmax; d_k is queries.shape[-1]."
    for name, message, factor in (
        ("scale-rounded", "The square root is rounded to an integer.",
         lambda d: 1 / np.floor(np.sqrt(d))),
        ("scale-half", "The scores are divided by 2 * d_k: / d_k ** 1 / 2 is (/ d_k) / 2.",
         lambda d: 1 / (2 * d)),
        ("scale-logarithm", "The scores are divided by the logarithm of d_k.",
         lambda d: 1 / np.log(d)),
        ("scale-three-halves", "The scores are divided by d_k and by sqrt(d_k).",
         lambda d: d**-1.5),
        ("scale-multiplied", "The scores are multiplied by d_k instead of divided by sqrt(d_k).",
         lambda d: float(d)),
        ("scale-power-of-two", "The scores are divided by 2 ** d_k instead of sqrt(d_k).",
         lambda d: 2.0**-d),
    ):  # fmt: skip
        add(name, f"{message} {once}", SCALE,
            scale=lambda q, k, call, factor=factor: factor(q.shape[-1]))  # fmt: skip
    add("scale-of-values",
        f"The scores are divided by the square root of the width of the values (d_v). {once}",
        SCALE,
        exchange=lambda q, k, v: (q * (q.shape[-1] / v.shape[-1]) ** 0.5, k, v))  # fmt: skip
    add("scale-of-everything",
        "The scores are divided by the square root of the number of all elements (size). " + once,
        SCALE, scale=lambda q, k, call: (q.shape[-1] * q.shape[-2]) ** -0.5)  # fmt: skip
    after = "The scale is applied after the softmax, to the weights, so that they no longer sum to "
    after += f"1. {once}"
    add("scale-after-softmax", after, SCALE,
        exchange=lambda q, k, v: (q * q.shape[-1] ** 0.5, k, v * q.shape[-1] ** -0.5))  # fmt: skip
    add("scaled-also-after-softmax",
        f"The weights or the context are divided by sqrt(d_k), too. {once}", SCALE,
        exchange=lambda q, k, v: (q, k, v * q.shape[-1] ** -0.5))  # fmt: skip
    add("scaled-also-after-softmax",
        f"The weights or the context are multiplied by sqrt(d_k), too. {once}", SCALE,
        exchange=lambda q, k, v: (q, k, v * q.shape[-1] ** 0.5))  # fmt: skip
    add("scale-after-softmax", after, SCALE,
        exchange=lambda q, k, v: (q * q.shape[-1] ** 0.5, k, v / q.shape[-1]))  # fmt: skip
    for power, verb in ((-1.0, "divided by"), (0.5, "multiplied by the square root of")):
        add("scale-of-tokens", f"The scores are {verb} the number of tokens. {once}", SCALE,
            scale=lambda q, k, call, power=power: k.shape[-2] ** power)  # fmt: skip
    for divisor in (
        lambda s: s.std(),
        lambda s: np.linalg.norm(s), lambda s: np.linalg.norm(s, axis=-1, keepdims=True),
        lambda s: s.max(), lambda s: np.abs(s).max(),
    ):  # fmt: skip
        add("scores-normalized",
            "The scores are divided by a number that is made from the scores (maximum, length or "
            f"deviation). {once}", SCALE,
            normalize=lambda s, divisor=divisor: softmax(s / divisor(s)))  # fmt: skip
    add("scores-normalized",
        f"The scores are divided by the root of the largest score. {once}", SCALE,
        scale=lambda q, k, call: 1.0,
        normalize=lambda s: softmax(s / np.sqrt(np.abs(s).max())))  # fmt: skip
    for function, name in ((lambda x: np.maximum(x, 0), "relu"), (np.tanh, "tanh")):
        for parts, of in (
            ((0,), "queries"),
            ((1,), "keys"),
            ((2,), "values"),
            ((0, 1), "queries and keys"),
            ((0, 1, 2), "queries, keys and values"),
        ):
            add("activation-added", f"An activation ({name}) is applied to the {of}. Use them as "
                "they are.", "relu|max|clip|tanh",
                exchange=lambda *qkv, f=function, parts=parts: tuple(
                    f(x) if i in parts else x for i, x in enumerate(qkv)))  # fmt: skip
    add("floor-division", "The scores are rounded down by //. Use /.", r"//",
        normalize=lambda s: softmax(np.floor(s)))  # fmt: skip
    dots = "The scores are dot products: queries @ keys.T."
    distance = np.linalg.norm
    for name, message, scores in (
        ("scores-of-distances", "The scores are distances.",
         lambda q, k: distance(q[..., :, None, :] - k[..., None, :, :], axis=-1)),
        ("scores-of-distances", "The scores are negative distances.",
         lambda q, k: -distance(q[..., :, None, :] - k[..., None, :, :], axis=-1)),
        ("scores-of-distances", "The scores are squared distances.",
         lambda q, k: ((q[..., :, None, :] - k[..., None, :, :]) ** 2).sum(-1)),
        ("scores-of-distances", "The scores are negative squared distances.",
         lambda q, k: -((q[..., :, None, :] - k[..., None, :, :]) ** 2).sum(-1)),
        ("scores-of-sums", "The features of queries and keys are added, not multiplied.",
         lambda q, k: (q[..., :, None, :] + k[..., None, :, :]).sum(-1)),
        ("scores-of-products-of-sums",
         "The features are summed before the product of queries and keys.",
         lambda q, k: q.sum(-1, keepdims=True) * k.sum(-1, keepdims=True).swapaxes(-1, -2)),
        ("scores-of-maxima", "The products of features are not summed: the largest one is used.",
         lambda q, k: (q[..., :, None, :] * k[..., None, :, :]).max(-1)),
        ("first-feature-only", "Only the first feature of queries and keys is used.",
         lambda q, k: q[..., :1] * k[..., :1].swapaxes(-1, -2)),
        ("last-feature-only",
         "Only the last feature is used: the sum is overwritten. Use += in the loop.",
         lambda q, k: q[..., -1:] * k[..., -1:].swapaxes(-1, -2)),
        ("last-feature-missing", "The last feature is left out: the loop is too short.",
         lambda q, k: q[..., :-1] @ k[..., :-1].swapaxes(-1, -2)),
        ("first-feature-missing", "The first feature is left out: the loop starts at 1.",
         lambda q, k: q[..., 1:] @ k[..., 1:].swapaxes(-1, -2)),
    ):  # fmt: skip
        add(name, f"{message} {dots}", scores=scores)
    add("scale-sign",
        "The sign of the scores is wrong: the best key gets the smallest weight. Remove the minus "
        "sign.", "-", scores=lambda q, k: -(q @ k.swapaxes(-1, -2)))  # fmt: skip
    for features_mix in (
        np.matmul, lambda w, v: w @ v.swapaxes(-1, -2),
        lambda w, v: (w @ v.swapaxes(-1, -2)).swapaxes(-1, -2), lambda w, v: v @ w,
    ):  # fmt: skip
        add("features-compared",
            f"The features, not the tokens, are compared: queries.T @ keys. {dots}",
            structure=lambda call: np.ones((1, 1), bool),
            scores=lambda q, k: q.swapaxes(-1, -2) @ k, mix=features_mix)  # fmt: skip
    add("elementwise", f"Queries, keys and values are multiplied cell by cell (*). {dots}",
        structure=lambda call: np.ones((1, 1), bool), scores=lambda q, k: q * k,
        mix=lambda w, v: w * v)  # fmt: skip
    add("softmax-of-inputs",
        "The softmax is applied to queries and keys before their product. Apply it to the scores: "
        "softmax(queries @ keys.T).", r"softmax\(",
        exchange=lambda q, k, v: (softmax(q), softmax(k), v), normalize=lambda s: s,
        scale=lambda q, k, call: 1.0)  # fmt: skip
    for scale in (1.0, -0.5):
        add("softmax-of-inputs",
            "The softmax is applied to the keys before the product with the queries. Apply it to "
            "the scores: softmax(queries @ keys.T).", r"softmax\(",
            exchange=lambda q, k, v, scale=scale: (
                q, softmax((k if scale == 1 else k * k.shape[-1] ** scale), -2), v),
            normalize=lambda s: s, scale=lambda q, k, call: 1.0)  # fmt: skip
    add("softmax-misplaced",
        "The softmax is applied to the product of scores and values, not to the scores: a bracket "
        "is in the wrong place. Write softmax(scores) @ values.", r"softmax\(",
        normalize=lambda s: s, finish=softmax)  # fmt: skip
    roles = "The context is the sum of the values, each multiplied by its weight."
    for name, message, mix in (
        ("values-reshaped", "The values are transposed, which only works if d_v = tokens.",
         lambda w, v: w @ v.swapaxes(-1, -2)),
        ("values-first", "The factors are exchanged: values @ weights.", lambda w, v: v @ w),
        ("elementwise", "The weights and the values are multiplied cell by cell (*).",
         lambda w, v: w * v),
        ("weights-summed", "Each token gets only its own value, times a sum of weights.",
         lambda w, v: w.sum(axis=-2)[..., None] * v),
        ("own-value-only", "Each token gets only its own value, times one weight.",
         lambda w, v: np.diagonal(w, axis1=-2, axis2=-1)[..., None] * v),
        ("last-value-only",
         "Only the last value is used: the sum is overwritten. Use += in the loop.",
         lambda w, v: w[..., -1:] * v[..., -1:, :]),
        ("first-value-only", "Only the first value is used: the loop ends too early.",
         lambda w, v: w[..., :1] * v[..., :1, :]),
        ("last-value-missing", "The last value is left out: the loop is too short.",
         lambda w, v: w[..., :-1] @ v[..., :-1, :]),
        ("first-value-missing", "The first value is left out: the loop starts at 1.",
         lambda w, v: w[..., 1:] @ v[..., 1:, :]),
        ("own-value-missing", "Each token leaves its own value out (i != j).",
         lambda w, v: (w * (1 - np.eye(w.shape[-1]))) @ v),
        ("weights-applied-twice", "The weights are applied twice.", lambda w, v: w @ (w @ v)),
        ("not-summed", "The products of weights and values are not summed over the tokens.",
         lambda w, v: w[..., None] * v[..., None, :, :]),
    ):  # fmt: skip
        add(name, f"{message} {roles}", mix=mix)
    add("scores-returned", "The scores are returned, not the context. Return weights @ values.",
        "return", normalize=lambda s: s, mix=lambda w, v: w)  # fmt: skip
    for which, name in enumerate(("queries", "keys", "values")):
        add("inputs-returned", f"The {name} are returned unchanged. Return weights @ values.",
            "return", exchange=lambda q, k, v, which=which: (q, k, (q, k, v)[which]),
            mix=lambda w, v: v)  # fmt: skip
    return found


def of_mask() -> list[Fault]:
    """Return more faults of the causal mask."""
    found: list[Fault] = []

    def add(name: str, message: str, **steps: Any) -> None:
        found.append(fault(name, message, MASK, **steps))

    hide = "Hide only j > i, as with triu(..., k=1)."
    add("mask-shifted", f"The mask is shifted by two: each token sees two later ones. {hide}",
        structure=lambda call: call.distance() >= -2)  # fmt: skip
    add("mask-hides-itself", f"The causal mask also hides the token and the previous one. {hide}",
        structure=lambda call: call.distance() >= 2)  # fmt: skip
    add("only-previous", f"Each token sees only the previous one. {hide}",
        structure=lambda call: call.distance() == 1)  # fmt: skip
    add("mask-first-row-only", f"The mask is applied to the first query only. {hide}",
        structure=lambda call: call.structure()
        | (np.arange(call.shape[0]) > 0)[:, None])  # fmt: skip
    add("mask-mirrored", f"The mask is mirrored: it follows the other diagonal. {hide}",
        structure=lambda call: call.structure()[:, ::-1])  # fmt: skip
    add("mask-mirrored", f"The mask is mirrored: it follows the other diagonal. {hide}",
        structure=lambda call: call.structure()[::-1])  # fmt: skip
    add("last-key-hidden",
        f"The last key is hidden from all queries, and nothing else. {hide}",
        structure=lambda call: np.ones(call.shape, bool)
        & (np.arange(call.shape[1]) < call.shape[1] - 1))  # fmt: skip
    add("mask-hides-zero-scores",
        "Scores that are exactly 0 are hidden, too: the mask is made from the scores (scores == 0)."
        " Make it from the positions: triu(ones).",
        hide_structure=lambda s, allowed: np.where(allowed & (s != 0), s, -np.inf))  # fmt: skip
    for axis, name in ((-2, "columns"), ((-2, -1), "whole matrix")):
        add("mask-wrong-normalization",
            f"After masking, the weights are divided by the sums of the {name}. Divide each row by "
            "its sum, or set scores to -inf before the softmax.",
            hide_structure=unchanged,
            drop_structure=lambda w, allowed, axis=axis: (m := remove(w, allowed))
            / m.sum(axis=axis, keepdims=True))  # fmt: skip
    add("mask-wrong-normalization",
        "After masking, each column, not each row, is divided. Write keepdims=True, or set scores "
        "to -inf before the softmax.",
        hide_structure=unchanged,
        drop_structure=lambda w, allowed: (m := remove(w, allowed)) / across(total(m)))  # fmt: skip
    twice = "The softmax is applied before and after the mask. Apply it once, after the mask."
    add("softmax-twice", twice, hide_structure=unchanged,
        drop_structure=lambda w, allowed: softmax(np.where(allowed, w, -np.inf)))  # fmt: skip
    add("softmax-twice", twice, hide_structure=unchanged,
        drop_structure=lambda w, allowed: softmax(remove(w, allowed)))  # fmt: skip
    add("mask-reversed + mask-after-softmax",
        "The causal mask is reversed (exchange tril and triu), and it sets weights to 0 after the "
        "softmax, so that the rows no longer sum to 1. Set scores to -inf before the softmax.",
        hide_structure=unchanged, structure=lambda call: call.distance() <= 0,
        drop_structure=remove)  # fmt: skip
    add("mask-shifted + mask-after-softmax",
        "The causal mask is shifted by one, and it sets weights to 0 after the softmax, so that "
        "the rows no longer sum to 1. Set scores with j > i to -inf before the softmax.",
        hide_structure=unchanged, structure=lambda call: call.distance() > 0,
        drop_structure=remove)  # fmt: skip
    add("mask-on-values", "The mask is applied to the values. Apply it to the scores.",
        structure=lambda call: np.ones(call.shape, bool),
        exchange=lambda q, k, v: (q, k, np.tril(v)))  # fmt: skip
    add("mask-on-values", "The mask is applied to the keys. Apply it to the scores.",
        structure=lambda call: np.ones(call.shape, bool),
        exchange=lambda q, k, v: (q, np.tril(k), v))  # fmt: skip
    add("mask-on-values", "The mask is applied to the queries. Apply it to the scores.",
        structure=lambda call: np.ones(call.shape, bool),
        exchange=lambda q, k, v: (np.tril(q), k, v))  # fmt: skip
    multiplied = (
        "The scores are multiplied by the mask and a large number. Multiplying never hides "
    )
    multiplied += "a score: add -inf where j > i, and 0 elsewhere."
    add("mask-multiplied", multiplied,
        hide_structure=lambda s, allowed: np.where(allowed, -1e9 * s, 0))  # fmt: skip
    add("mask-multiplied", multiplied,
        hide_structure=lambda s, allowed: np.where(allowed, 0, -1e9 * s))  # fmt: skip
    add("mask-multiplied", multiplied,
        hide_structure=lambda s, allowed: np.where(allowed, s, -1e9 * s))  # fmt: skip
    add("scale-of-tokens",
        "The scores are divided by the square root of the number of visible tokens. Divide them by "
        "sqrt(d_k); d_k is queries.shape[-1].",
        scale=lambda q, k, call: (call.distance()[:, :1] + 1.0) ** -0.5)  # fmt: skip
    add("mask-on-context", "The mask is applied to the context. Apply it to the scores.",
        structure=lambda call: np.ones(call.shape, bool), finish=np.tril)  # fmt: skip
    add("mask-added",
        "The mask is subtracted as 0 and 1. Add 0 where attention is allowed and -inf elsewhere.",
        hide_structure=lambda s, allowed: s - allowed)  # fmt: skip
    add("mask-added", "The weights are changed by adding or subtracting the mask. Set scores to "
        "-inf before the softmax.",
        hide_structure=unchanged, drop_structure=lambda w, allowed: w + allowed)  # fmt: skip
    add("mask-added", "The weights are changed by adding or subtracting the mask. Set scores to "
        "-inf before the softmax.",
        hide_structure=unchanged, drop_structure=lambda w, allowed: w - ~allowed)  # fmt: skip
    add("mask-after-softmax",
        "The mask sets weights to a large negative number after the softmax. Set scores to -inf "
        "before the softmax.",
        hide_structure=unchanged,
        drop_structure=lambda w, allowed: np.where(allowed, w, -1e9))  # fmt: skip
    return found
