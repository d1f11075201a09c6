"""Faults of the softmax, of the scale and of softcap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from headway.check.suspects.steps import Array, Step, Suspects, scale, softmax


def of_softmax() -> Suspects:
    """Return faults of the normalization."""
    found = Suspects("weights = softmax(scores, dim=-1), over the keys", r"softmax|exp\(|sum\(")
    for axis, name in (
        (-2, "query axis: columns, not rows, sum to 1"),
        (1, "heads (the head axis): for a pair of tokens the heads, not the keys, sum to 1"),
        (0, "batch axis: batch rows, not keys, sum to 1"),
        ((-2, -1), "whole matrix of queries and keys: all its cells together sum to 1"),
    ):
        found.add(
            f"the softmax runs over the {name}",
            # A column with all scores hidden is 0/0, which may be replaced by 0.
            normalize=lambda scores, axis=axis: np.nan_to_num(softmax(scores, axis)),
        )
    found.add(
        "the softmax is applied twice",
        normalize=lambda scores: softmax(np.where(np.isfinite(scores), softmax(scores), -np.inf)),
    )
    found.add("the softmax is applied twice", normalize=lambda scores: softmax(softmax(scores)))
    found.add(
        "there is no softmax: the scores are used as weights",
        normalize=lambda scores: np.where(np.isfinite(scores), scores, 0.0),
    )
    found.add("the exponentials are not normalized: no division by their sum", normalize=np.exp)
    found.add(
        "there is no softmax: scores are divided by their sum, without exponentials",
        normalize=lambda scores: (
            (finite := np.where(np.isfinite(scores), scores, 0.0))
            / finite.sum(axis=-1, keepdims=True)
        ),
    )
    found.add(
        "argmax in place of softmax: a query reads the best key only",
        normalize=lambda scores: np.eye(scores.shape[-1])[scores.argmax(axis=-1)],
    )
    found.add(
        "a term of 1 is added to the denominator of the softmax (softmax-off-by-one), so that the "
        "weights do not sum to 1",
        normalize=lambda scores: np.exp(scores) / (1 + np.exp(scores).sum(-1, keepdims=True)),
        declare="sinks=True (--sinks)",
    )
    return found


def of_scale() -> Suspects:
    """Return faults of the factor 1/sqrt(d_k)."""
    fix = "scores = queries @ keys.mT * queries.shape[-1] ** -0.5, once, before the softmax"
    found = Suspects(fix, r"sqrt|\*\*|scale")

    def times(power: float, of: Callable[[Array, Array], float]) -> Step:
        return lambda q, k, call: of(q, k) ** power

    def d(q: Array, k: Array) -> float:
        return float(q.shape[-1])

    for name, power in (
        ("no scale: 1/sqrt(d_k) is missing, no scale at all", 0.0),
        ("the scale is applied twice: the scores are divided by d_k, not by sqrt(d_k)", -1.0),
        ("the scores are multiplied by sqrt(d_k) instead of divided", 0.5),
        ("the scale is 1/d_k^(1/4), the root of the root: or only queries or only keys are scaled",
         -0.25),
    ):  # fmt: skip
        found.add(name, scale=times(power, d))
    for name, of in (
        ("sqrt of the width of all heads, not of one head (d_model, not d_k)",
         lambda q, k: q.shape[-1] * q.shape[1]),
        ("sqrt of the number of keys (the length of the text), not of d_k",
         lambda q, k: k.shape[-2]),
        ("sqrt of the number of queries, not of d_k", lambda q, k: q.shape[-2]),
        ("sqrt of the number of heads, not of d_k", lambda q, k: q.shape[1]),
        ("sqrt of the batch size, not of d_k", lambda q, k: q.shape[0]),
    ):  # fmt: skip
        found.add(f"the scores are divided by the {name}", scale=times(-0.5, of))
    found.add(
        "the scale is 0: queries and keys have no influence, and all weights are equal (uniform)",
        scale=lambda q, k, call: 0.0,
    )
    found.add(
        "the sign of the scores is wrong: the best key gets the smallest weight",
        scale=lambda q, k, call: -scale(q, k, call),
    )
    found.add(
        "the scale comes after the softmax: the weights, not the scores, are multiplied by "
        "1/sqrt(d_k)",
        scale=times(0.0, d),
        mix=lambda weights, values: weights @ values * values.shape[-1] ** -0.5,
    )
    return found


def of_softcap() -> Suspects:
    """Return faults of softcap."""
    fix = "scores = softcap * tanh(scores * scale / softcap), then mask"
    found = Suspects(fix, "tanh|softcap")
    found.add("the cap comes after the mask: tanh turns -inf into a score of -c", cap_last=True)
    found.add("softcap has no effect: scores are not capped", cap=lambda scores, limit: scores)
    found.add("the cap has no factor: tanh(score / c) instead of c * tanh(score / c)",
              cap=lambda scores, limit: np.tanh(scores / limit))  # fmt: skip
    found.add("the cap does not divide: c * tanh(score) instead of c * tanh(score / c)",
              cap=lambda scores, limit: limit * np.tanh(scores))  # fmt: skip
    found.add("the cap is a hard limit (clamp) instead of c * tanh(score / c)",
              cap=lambda scores, limit: np.clip(scores, -limit, limit))  # fmt: skip

    return found
