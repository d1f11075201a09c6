"""Suspects whose parameters are measured: another scale, a finite mask, a window, sinks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from headway.check.core import Scale
from headway.check.suspects.steps import RIGHT, Call, Suspect, cap, hide


def of_scale(measured: Scale) -> Iterator[Suspect]:
    """Yield the measured scale, and a cap of the scores."""
    look, right = r"sqrt|\*\*|scale", measured.head_dim**-0.5
    of_parts = [n for n in range(2, measured.head_dim) if measured.head_dim % n == 0]
    parts = [n for n in of_parts if abs(measured.factor / right - n**0.5) < 1e-3]
    yield Suspect(
        f"the scale is another one: the dot products are multiplied by {measured.factor:.6g}, not "
        f"by 1/sqrt({measured.head_dim}) = {right:.4g}"
        + (f" (it is that of {parts[0]} heads: are the heads not split?)" if parts else ""),
        "scores = queries @ keys.mT * queries.shape[-1] ** -0.5, once, before the softmax",
        replace(RIGHT, scale=lambda q, k, call: measured.factor),
        look,
    )
    if measured.cap is not None:
        limit = measured.cap
        yield Suspect(
            f"the scores are capped at {limit:.4g}, which was not declared",
            "leave out the cap, or declare it",
            replace(
                RIGHT, hide_structure=lambda scores, allowed: hide(cap(scores, limit), allowed)
            ),
            "tanh|softcap",
            f"softcap={limit:.6g} (--softcap {limit:.6g})",
        )


def of_structure(weights: np.ndarray, call: Call) -> Iterator[Suspect]:
    """Yield a window or a prefix that was not declared."""
    seen = np.asarray((weights > 0).any(axis=(0, 1)))
    rows, columns = np.indices(seen.shape)
    width, first = int(seen[-1].sum()), int(seen[0].sum())
    fix = "check the mask, or declare it"
    later = np.triu(np.ones_like(seen), 1)
    open_heads = np.asarray(((weights > 0) & later).any(axis=(0, 2, 3)))
    if call.causal and open_heads.any() and not open_heads.all():
        heads = ", ".join(map(str, np.flatnonzero(open_heads)))
        yield Suspect(
            f"the causal mask is missing in some heads: head {heads} attends to later tokens, the "
            "future",
            "scores.masked_fill(later, -inf) in every head",
            replace(RIGHT, structure=lambda call: call.structure() | open_heads[:, None, None]),
            r"mask|tril|triu",
        )
    kinds: tuple[tuple[str, str, Any], ...] = (
        (f"a query sees the last {width} keys only: a sliding window of {width} that was not "
         "declared", f"window={width} (--window {width})",
         lambda rows, columns: (columns <= rows) & (rows - columns < width)),
        (f"a query sees keys on both sides, earlier and later ones, at a distance below {width}: a "
         "window that was not declared" + ", without a causal mask" * call.causal,
         f"window={width} (--window {width})",
         lambda rows, columns: np.abs(rows - columns) < width),
        (f"the first {first} tokens see each other, and the others are causal: a prefix that was "
         "not declared", f"causal=True, prefix={first} (--causal --prefix {first})",
         lambda rows, columns: (columns <= rows) | (rows < first) & (columns < first)),
    )  # fmt: skip
    for what, name, allowed in kinds:
        if np.array_equal(seen, allowed(rows, columns)) and len(seen) > 2:
            yield Suspect(
                what, fix, replace(RIGHT, structure=_structure(allowed)), r"mask|window", name
            )


def _structure(allowed: Any) -> Any:
    def structure(call: Call) -> np.ndarray:
        _, columns = np.indices(call.shape)
        return np.asarray(allowed(call.distance() + columns, columns))

    return structure


def of_sums(weights: np.ndarray, scores: np.ndarray, call: Call) -> Iterator[Suspect]:
    """Yield sinks: the same additional term in the denominator of all rows of a head."""
    allowed = call.structure()
    sums = weights.sum(axis=-1)
    factor = float(sums.mean())
    if np.allclose(sums, factor, rtol=1e-9) and abs(factor - 1) > 1e-6:
        yield Suspect(
            f"all weights are multiplied by {factor:.4g}, so that they do not sum to 1 (the "
            "rescaling of dropout in evaluation, or a factor after the softmax)",
            "rescale by 1/(1-p) while training only",
            replace(RIGHT, mix=lambda w, v: factor * (w @ v)),
            r"drop|/ \(1|\* ",
        )
    if not ((sums > 0) & (sums < 1 - 1e-6)).all():
        return
    total = np.exp(np.where(allowed, scores, -np.inf)).sum(axis=-1)
    terms = total / sums - total  # (batch, heads, queries)
    of_heads = np.asarray(terms[:1, :, :1])
    if np.allclose(terms, of_heads, rtol=1e-6):
        yield Suspect(
            "a constant term is added to the denominator of the softmax of each head (a sink or an "
            "additional key), so that the weights do not sum to 1",
            "weights = softmax(scores, dim=-1), over the keys alone",
            replace(
                RIGHT,
                normalize=lambda s: (
                    np.exp(s) / (np.exp(s).sum(-1, keepdims=True) + of_heads[..., None])
                ),
            ),
            r"softmax|exp\(|sum\(",
            "sinks=True (--sinks)",
        )


def of_hidden(
    weights: np.ndarray, scores: np.ndarray, allowed: np.ndarray
) -> Iterator[tuple[str, Any]]:
    """Yield steps that hide scores with a finite number, measured from the weights."""
    allowed = np.broadcast_to(allowed, weights.shape)
    rows = allowed.any(-1) & ~allowed.all(-1)
    if not rows.any():
        return
    with np.errstate(all="ignore"):
        logs = np.log(weights)
        # The score of a key, up to a constant of the row.
        offset = np.where(allowed, logs - scores, np.nan)
        offset = np.nanmean(offset, axis=-1, keepdims=True)
        cells = np.asarray(~allowed & np.asarray(rows)[..., None])
        hidden = (logs - offset)[cells]
        added = hidden - scores[cells]
    steps: tuple[tuple[np.ndarray, str, Any], ...] = (
        (hidden, "fills in {:.4g} instead of -inf", lambda s, a, c: np.where(a, s, c)),
        (added, "adds {:.4g} instead of -inf", lambda s, a, c: np.where(a, s, s + c)),
    )
    for numbers, name, step in steps:
        if np.isfinite(numbers).all() and np.ptp(numbers) < 1e-5 * max(1, abs(numbers.mean())):
            number = float(np.median(numbers))
            yield name.format(number), partial(_filled, step=step, number=number)


def _filled(scores: np.ndarray, allowed: np.ndarray, *, step: Any, number: float) -> np.ndarray:
    return np.asarray(step(scores, allowed, number))
