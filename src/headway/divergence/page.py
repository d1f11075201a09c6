"""The report of a comparison as one HTML file, with the matrices of both models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.divergence.measure import LOWEST, MISSING, as_masked, difference
from headway.divergence.render import SYMBOLS, conclusion
from headway.divergence.report import Report, Step
from headway.explore.export import STATIC as EXPLORER
from headway.explore.offline import inlined

STATIC = Path(__file__).parent / "static"
MOST = 48  # rows and columns of a matrix on the page


def page(report: Report) -> str:
    """Return the page, which needs neither a server nor a network."""
    shown = report.as_dict() | {
        "conclusion": conclusion(report),
        "lowest": LOWEST,
        "steps": [_step(report, step) for step in report.steps],
    }
    data = json.dumps(shown, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    index = (STATIC / "index.html").read_text(encoding="utf-8").replace("<!-- report -->", data)
    return inlined(index, [EXPLORER, STATIC], 'import("divergence/main.js");', index.encode())


def _step(report: Report, step: Step) -> dict[str, Any]:
    values, error = report.values.get(step.name), step.difference
    if error is None and values is not None and values[0].shape == values[1].shape:
        error = difference(*values)  # of a cause, which a search finds without measuring it
    is_cause = any(cause.name == step.name for cause in report.causes)
    return {
        "name": step.name,
        "verdict": "wrong" if is_cause else SYMBOLS[step.state] or "same",
        "difference": None if error is None else _cell(error),
        "limit": _cell(step.limit),
        "values": None if values is None else _values(step.name, *values),
    }


def _values(name: str, one: Tensor, two: Tensor) -> dict[str, Any]:
    """The matrices where the difference is largest, and where they are in the values of a step."""
    shapes = {"shapes": [[*one.shape], [*two.shape]]}
    if one.shape != two.shape or not one.numel():
        return shapes
    a, b = (x.detach().cpu().double() for x in (one, two))
    if a.ndim < 2:
        a, b = a.reshape(1, -1), b.reshape(1, -1)
    change = _subtracted(a, b)
    sizes = change.where(change != MISSING, 0.0).abs().nan_to_num(math.inf, math.inf)
    *outer, row, column = (int(i) for i in torch.unravel_index(sizes.argmax(), a.shape))
    axes = ["batch row", "head"]
    if len(outer) > len(axes) or name.startswith(("gradients.", "updates.")):
        axes = [f"index of axis {axis}" for axis in range(len(outer))]
    size, at = [*a.shape[-2:]], [row, column]
    first = [max(0, min(i - MOST // 2, n - MOST)) for i, n in zip(at, size, strict=True)]
    rows, columns = (slice(start, start + MOST) for start in first)
    parts = [x[tuple(outer)][rows, columns].tolist() for x in (a, b, change)]
    return shapes | {
        "place": ", ".join(f"{axis} {i}" for axis, i in zip(axes, outer, strict=False)),
        "size": size,
        "first": first,
        "at": at,
        "matrices": [[[*map(_cell, line)] for line in part] for part in parts],
    }


def _subtracted(a: Tensor, b: Tensor) -> Tensor:
    """The differences, with masked, NaN and missing cells as in `measure.difference`."""
    is_missing = (a == MISSING) | (b == MISSING)
    a, b = as_masked(a, b)
    is_same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(is_missing, MISSING, torch.where(is_same, 0.0, a - b))


def _cell(x: float) -> float | str:
    """A number for JSON, with five digits, or a word that JavaScript reads as the same number."""
    if x == MISSING:
        return "not computed"
    if math.isfinite(x):
        return float(f"{x:.5g}")
    return "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity"
