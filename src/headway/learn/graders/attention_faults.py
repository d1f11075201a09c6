"""Faults of attention with heads that several exercises share, as replaced steps of the doctor.

Arrays are (batch, heads, tokens, d), as in `check.suspects.steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from headway.check.suspects.steps import Array, Call, remove, scale, softmax, unchanged
from headway.learn.graders.compare import Fault, fault

SCALE = r"sqrt|\*\* ?-?\(?0\.5|scale|\* ?-0\.5|(@|einsum|matmul|bmm|dot).*/"
SOFTMAX = r"softmax|exp\(|sum\(|argmax|sigmoid"
# An axis that is not the last one, or none; if there is no such line, the softmax.
OTHER_AXIS = (
    r"^(?!.*(cat|stack)).*((axis|dim)=(0|-2|None)\b|(softmax|sum)\((.*, )?(0|-2)\b|sum\(\w*\))"
)
OTHER_AXIS += f"\n{SOFTMAX}"
# The sum, or the maximum; if it has no line of its own, the softmax.
SUM, MAXIMUM = f"sum\\(\n{SOFTMAX}", f"max\\(\n{SOFTMAX}"
MASK = r"mask|tril|triu|inf|where|causal|1e-?9|>|<"
# Products that are no projections: of the scores, and of the context.
ROLES = r"^(?!.*\b(W_?\w|w_?[qkv])).*(@|matmul|einsum|dot|bmm)"
MIX = r"^(?!.*(\b(W_?\w|w_?[qkv])|\.m?T\b|transpose|swapaxes|permute)).*(@|matmul|einsum|dot|bmm)"
MIX += r"|softmax\(.*\) @"


def low(scores: Array, allowed: Array) -> Array:
    """Set scores that are not allowed to a large negative number: a row without keys has no NaN."""
    return np.where(allowed, scores, -1e9)


def of_scale() -> list[Fault]:
    """Return faults of the factor 1/sqrt(d), d being the features of one head."""
    found = []

    def add(name: str, message: str, factor: Callable[[Array, Array], float]) -> None:
        step = {"scale": lambda q, k, call: factor(q, k)}
        advice = "Divide the scores by sqrt(d_k), once, before the softmax; d_k is the number of "
        advice += "features of a query (of one head, if there are several)."
        found.append(Fault(name, f"{message} {advice}", SCALE, step))

    def d(q: Array) -> float:
        return float(q.shape[-1])

    add("no-scale", "The scores are not scaled.", lambda q, k: 1.0)
    add(
        "scale-without-root",
        "The scores are divided by d instead of sqrt(d), or by sqrt(d) twice.",
        lambda q, k: 1 / d(q),
    )
    add(
        "scale-multiplied",
        "The scores are multiplied by sqrt(d) instead of divided.",
        lambda q, k: d(q) ** 0.5,
    )
    add(
        "scale-fourth-root",
        "The scores are divided by the fourth root of d: only queries or only keys are scaled by "
        "a part of the factor, or the root is taken twice.",
        lambda q, k: d(q) ** -0.25,
    )
    add("scale-squared", "The scores are divided by d squared.", lambda q, k: d(q) ** -2)
    add(
        "scale-half",
        "The scores are divided by d / 2: the square root is not d ** 0.5 here.",
        lambda q, k: 2 / d(q),
    )
    add(
        "scale-of-all-heads",
        "The scores are divided by the square root of the width of all heads together.",
        lambda q, k: (d(q) * q.shape[1]) ** -0.5,
    )
    add(
        "scale-of-tokens",
        "The scores are divided by the square root of the number of tokens.",
        lambda q, k: k.shape[-2] ** -0.5,
    )
    add(
        "scale-of-heads",
        "The scores are divided by the square root of the number of heads.",
        lambda q, k: q.shape[1] ** -0.5,
    )
    found += [
        fault(
            "scale-sign",
            "The sign of the scores is wrong: the best key gets the smallest weight. Remove the "
            "minus sign.",
            f"{SCALE}|-",
            scale=lambda q, k, call: -scale(q, k, call),
        ),
        fault(
            "scale-after-softmax",
            "The scale is applied after the softmax, to the weights, so that they no longer sum to "
            "1. Scale the scores before the softmax.",
            SCALE,
            scale=lambda q, k, call: 1.0,
            mix=lambda weights, v: weights @ v * v.shape[-1] ** -0.5,
        ),
        fault(
            "scaled-also-after-softmax",
            "The weights are divided by sqrt(d) after the softmax, so that they no longer sum to "
            "1. Scale only the scores.",
            SCALE,
            mix=lambda weights, v: weights @ v * v.shape[-1] ** -0.5,
        ),
        fault(
            "normalized-inputs",
            "The scores are cosines: queries and keys are divided by their lengths. Use the dot "
            "products.",
            r"norm",
            exchange=lambda q, k, v: (
                *(x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k)),
                v,
            ),
            scale=lambda q, k, call: 1.0,
        ),
    ]
    return found


def of_softmax(axes: dict[Any, str]) -> list[Fault]:
    """Return faults of the normalization. axes: wrong axes and their names."""
    found = []

    def finite(scores: Array) -> Array:
        return np.where(np.isfinite(scores), scores, 0.0)

    def divided(scores: Array) -> Array:
        return np.asarray(scores / scores.sum(axis=-1, keepdims=True))

    def add(
        name: str, message: str, normalize: Callable[[Array], Array], look: str = SOFTMAX
    ) -> None:
        found.append(Fault(name, message, look, {"normalize": normalize}))

    for axis, name in axes.items():
        wrong = f"The softmax runs over {name}, so that the rows of the weights do not sum to 1."
        advice = "Use the last axis, the keys: axis=-1 (dim=-1)."
        for normalize in (
            lambda scores, axis=axis: softmax(scores, axis),
            lambda scores, axis=axis: np.nan_to_num(softmax(scores, axis)),
        ):
            add("softmax-axis", f"{wrong} {advice}", normalize, OTHER_AXIS)
    # The doctor's softmax is NaN for an axis without any key.
    again = "The softmax is applied twice, which makes the weights almost equal. Apply it once."
    add(
        "softmax-twice",
        again,
        lambda scores: softmax(np.where(np.isfinite(scores), softmax(scores), -np.inf)),
    )
    add("softmax-twice", again, lambda scores: softmax(softmax(scores)))
    missing = "There is no softmax: the scores are used as weights. Apply the softmax to each row."
    add("no-softmax", missing, lambda scores: scores, f"{SOFTMAX}\n{ROLES}")
    add("no-softmax", missing, finite, f"{SOFTMAX}\n{ROLES}")
    add(
        "not-divided",
        "The exponentials are not divided by their sum. Divide each row by its sum.",
        np.exp,
    )
    add(
        "not-divided",
        "The exponentials are not divided by their sum. Divide each row by its sum.",
        lambda scores: np.exp(scores - scores.max(axis=-1, keepdims=True)),
    )
    linear = "The scores are divided by their sum, without exponentials. Use exp(score) / sum."
    add("no-exponential", linear, lambda scores: divided(finite(scores)))
    add("no-exponential", linear, divided)
    add(
        "argmax",
        "Each query reads the best key only (argmax). The softmax gives every key some weight.",
        lambda scores: np.eye(scores.shape[-1])[scores.argmax(axis=-1)],
    )
    add(
        "sigmoid",
        "The weights are sigmoids, whose rows do not sum to 1. Use the softmax.",
        lambda scores: 1 / (1 + np.exp(-scores)),
    )
    add(
        "log-softmax",
        "The weights are logarithms (log_softmax). Use the softmax.",
        lambda scores: np.log(softmax(scores)),
    )
    add(
        "softmax-off-by-one",
        "The sum of the exponentials has an additional term of 1. Remove it.",
        lambda scores: np.exp(scores) / (1 + np.exp(scores).sum(axis=-1, keepdims=True)),
    )
    add(
        "equal-weights",
        "All keys have the same weight: queries and keys have no influence. Use their dot products "
        "as scores.",
        lambda scores: softmax(np.where(np.isfinite(scores), 0.0, scores)),
    )
    add(
        "softmax-base",
        "The powers have the base 2 instead of e. Use exp.",
        lambda scores: softmax(scores * np.log(2)),
    )
    add(
        "absolute-scores",
        "The scores lose their sign (absolute value or square). Keep the sign.",
        lambda scores: softmax(np.where(np.isfinite(scores), np.abs(finite(scores)), scores)),
    )
    add(
        "relu",
        "Negative scores are set to 0 before the softmax (relu). Keep them.",
        lambda scores: softmax(np.where(np.isfinite(scores), np.maximum(scores, 0), scores)),
    )
    return found


def of_causal() -> list[Fault]:
    """Return faults of the causal mask."""
    found = []

    def distance(call: Call) -> Array:
        return call.distance()

    def add(name: str, message: str, **steps: Any) -> None:
        found.append(Fault(name, message, MASK, steps))

    add(
        "no-mask",
        "There is no causal mask: tokens attend to later tokens. Set scores[i, j] to -inf where "
        "j > i, before the softmax.",
        structure=lambda call: np.ones_like(call.structure()),
    )
    add(
        "mask-shifted",
        "The causal mask is shifted by one: each token attends to the next one, too. Hide j > i, "
        "as with triu(..., k=1).",
        structure=lambda call: distance(call) >= -1,
    )
    itself = "The causal mask also hides the token itself. Hide only j > i, as with triu(..., k=1)."
    add("mask-hides-itself", itself, structure=lambda call: distance(call) > 0)
    add(
        "mask-hides-itself",
        itself,
        structure=lambda call: distance(call) > 0,
        normalize=lambda scores: np.nan_to_num(softmax(scores)),
    )
    low = np.finfo(np.float32).min / 4
    add(
        "mask-hides-itself",
        itself,
        structure=lambda call: distance(call) > 0,
        hide_structure=lambda scores, allowed: np.where(allowed, scores, low),
    )
    for hide in (
        lambda scores, allowed: np.where(allowed, scores, scores - 1e9),
        lambda scores, allowed: np.where(allowed & (scores != 0), scores, low),  # tril(s, -1) == 0
    ):
        add(
            "mask-hides-itself",
            itself,
            structure=lambda call: distance(call) > 0,
            hide_structure=hide,
        )
    reverse = "The causal mask is reversed: tokens attend to later tokens, not to earlier ones. "
    reverse += "Exchange tril and triu, or True and False."
    add("mask-reversed", reverse, structure=lambda call: distance(call) <= 0)
    add("mask-reversed", reverse, structure=lambda call: distance(call) < 0)
    add(
        "mask-reversed",
        reverse,
        structure=lambda call: distance(call) < 0,
        normalize=lambda scores: np.nan_to_num(softmax(scores)),
    )
    add(
        "mask-reversed",
        reverse,
        structure=lambda call: distance(call) < 0,
        hide_structure=lambda scores, allowed: np.where(allowed, scores, low),
    )
    add(
        "only-itself",
        "Each token gets only its own value. It must attend to all earlier tokens, too: look at "
        "the mask and at the product weights @ values.",
        structure=lambda call: distance(call) == 0,
    )
    add(
        "window",
        "Each token attends to itself and the previous token only. It must attend to all earlier "
        "tokens.",
        structure=lambda call: (distance(call) >= 0) & (distance(call) < 2),
    )
    found += misapplied("mask", "causal mask", "later tokens", "hide_structure", "drop_structure")
    return found


def misapplied(name: str, mask: str, hidden: str, hide: str, drop: str) -> list[Fault]:
    """Return wrong ways to apply a mask. hide, drop: the steps before and after the softmax."""
    found = []

    def add(kind: str, message: str, **steps: Any) -> None:
        found.append(Fault(f"{name}-{kind}", message, MASK, steps))

    add(
        "after-softmax",
        f"The {mask} sets weights to 0 after the softmax, so that the rows no longer sum to 1. Set "
        "scores to -inf before the softmax.",
        **{hide: unchanged, drop: remove},
    )
    add(
        "after-softmax",
        f"The {mask} sets weights to -inf after the softmax. Set scores to -inf before the "
        "softmax.",
        **{hide: unchanged, drop: lambda weights, allowed: np.where(allowed, weights, -np.inf)},
    )

    def add_both(kind: str, message: str, step: Callable[[Array], Any]) -> None:
        """Add a fault that replaces hidden scores, also those that another mask hides."""

        def over(scores: Array, allowed: Array) -> Array:
            return np.where(allowed, scores, step(scores))

        def under(scores: Array, allowed: Array) -> Array:
            return over(scores, allowed | (scores < -1e8))

        add(kind, message, **{hide: over})
        add(kind, message, **{hide: under})

    add_both(
        "zero",
        f"The {mask} sets the scores of {hidden} to 0 (or a number near 0, such as 1e-9). exp(0) "
        "is 1, so they still get weight. Set them to -inf.",
        lambda scores: 0.0,
    )
    ones = f"The {mask} is added as 0 and 1. Add 0 where attention is allowed and -inf elsewhere."
    add("added", ones, **{hide: lambda scores, allowed: scores + allowed})
    add("added", ones, **{hide: lambda scores, allowed: scores + ~allowed})
    weak = f"The {mask} {{}} {hidden}, which is not low enough. Use -inf."
    for fixed in (-1.0, -5.0):
        add_both(
            "too-small",
            weak.format(f"sets the score to {fixed:g} for"),
            partial(np.full_like, fill_value=fixed),
        )
    for added in (-2.0, -5.0):
        message = weak.format(f"subtracts {-added:g} from the scores of")
        add_both("too-small", message, partial(np.add, added))
    add_both(
        "sign",
        f"The {mask} gives {hidden} a very large score or +inf, so that they get all the weight, "
        "or NaN. The sign is wrong: use -inf.",
        lambda scores: np.inf,
    )
    add_both(
        "sign",
        f"The {mask} gives {hidden} a very large score, so that they get all the weight. The sign "
        "is wrong: use -inf.",
        lambda scores: 1e9,
    )
    return found


def of_roles() -> list[Fault]:
    """Return faults of the roles of queries, keys and values."""
    found = []
    roles = "The scores have a row for each query and a column for each key, and the weights "
    roles += "multiply the values."
    for name, message, exchange in (
        (
            "queries-keys-exchanged",
            "Queries and keys are exchanged: the scores are transposed.",
            lambda q, k, v: (k, q, v),
        ),
        ("keys-values-exchanged", "Keys and values are exchanged.", lambda q, k, v: (q, v, k)),
        (
            "queries-values-exchanged",
            "Queries and values are exchanged.",
            lambda q, k, v: (v, k, q),
        ),
        (
            "roles-rotated",
            "Queries, keys and values are exchanged in a circle.",
            lambda q, k, v: (k, v, q),
        ),
        (
            "roles-rotated",
            "Queries, keys and values are exchanged in a circle.",
            lambda q, k, v: (v, q, k),
        ),
        (
            "values-unused",
            "The values are not used: the keys are mixed.",
            lambda q, k, v: (q, k, k),
        ),
        (
            "values-unused",
            "The values are not used: the queries are mixed.",
            lambda q, k, v: (q, k, q),
        ),
        (
            "keys-unused",
            "The keys are not used: queries are compared with queries.",
            lambda q, k, v: (q, q, v),
        ),
        (
            "keys-unused",
            "The keys are not used: queries are compared with values.",
            lambda q, k, v: (q, v, v),
        ),
        (
            "queries-unused",
            "The queries are not used: keys are compared with keys.",
            lambda q, k, v: (k, k, v),
        ),
        (
            "queries-unused",
            "The queries are not used: values are compared with keys.",
            lambda q, k, v: (v, k, v),
        ),
        ("queries-only", "Only the queries are used, three times.", lambda q, k, v: (q, q, q)),
        ("keys-only", "Only the keys are used, three times.", lambda q, k, v: (k, k, k)),
        ("values-only", "Only the values are used, three times.", lambda q, k, v: (v, v, v)),
    ):
        look = MIX if name == "values-unused" else ROLES
        found.append(Fault(name, f"{message} {roles}", look, {"exchange": exchange}))
    found += [
        fault(
            "weights-transposed",
            f"The weights are transposed before the product with the values. {roles}",
            r"\.m?T @|(transpose|swapaxes|permute)\([^()]*\) @|@ \w+\.m?T$",
            mix=lambda w, v: w.swapaxes(-1, -2) @ v,
        ),
        fault(
            "weights-returned",
            "The weights are returned, not the context. Return weights @ values.",
            r"return",
            mix=lambda w, v: w,
        ),
        fault(
            "keys-reshaped",
            "The keys are reshaped instead of transposed before the product with the queries. Use "
            "transpose or swapaxes: reshape keeps the order in memory.",
            r"reshape|view",
            exchange=lambda q, k, v: (
                q,
                k.reshape((*k.shape[:-2], k.shape[-1], k.shape[-2])).swapaxes(-1, -2),
                v,
            ),
        ),
        fault(
            "keys-not-transposed",
            "The keys are not transposed before the product with the queries, which only works if "
            "there are as many tokens as features. Transpose the last two axes.",
            ROLES,
            exchange=lambda q, k, v: (q, k.swapaxes(-1, -2), v),
        ),
        fault(
            "residual",
            "The values are added to the context. Return weights @ values alone.",
            r"\+",
            mix=lambda w, v: w @ v + v,
        ),
        fault(
            "average",
            "The context is the sum divided by the number of tokens. The weights sum to 1 already: "
            "do not divide.",
            r"mean|/",
            mix=lambda w, v: w @ v / v.shape[-2],
        ),
    ]
    return found
