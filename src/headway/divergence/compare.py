"""`diff`: compare two models step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headway.divergence import by_name, by_numbers
from headway.divergence.backward import Compared, trained
from headway.divergence.calls import Steps
from headway.divergence.looks import describe
from headway.divergence.measure import Limits, difference, limit
from headway.divergence.operations import Interrupted
from headway.divergence.report import Cause, Report, Step
from headway.divergence.sides import Module, Named, Recorded, opened
from headway.divergence.tokens import chosen

RECORDED = 2e-5  # the largest difference that rounding explains, between two trace files


def diff(
    a: Any,
    b: Any,
    tokens: Any = None,
    *,
    a_settings: Mapping[str, Any] | None = None,
    b_settings: Mapping[str, Any] | None = None,
    backward: bool = False,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    runs: str = "runs",
) -> Report:
    """Compare two models step by step, and search for the first step that differs.

    a: a run, a Hugging Face folder, a trace file, or a model of Headway or of transformers; its
    steps have names. b: the same, or any `torch.nn.Module`, or `file.py:function` that returns one;
    called with tokens (batch, tokens) it returns logits. tokens: integers (batch, tokens), or a
    text; random by default, and those of a trace file.
    a_settings, b_settings: attention, dtype, device, engine, cache, pad_left, pad_right,
    checkpoint; see `settings.Settings`.
    backward: if the logits agree, compare also the loss, the gradients of all parameters, and the
    first updates of the optimizer. loss, optimizer: functions of B, (model, tokens) and (model), by
    default those in its file; otherwise the mean cross-entropy of the next tokens, and AdamW.

    The numbers are compared in float64, as far as both sides have it, and a step differs if its
    difference is larger than eight times the measured rounding of float32 (or of the dtype that a
    side sets). Raises ValueError for sides that cannot be compared.
    """
    one, two = opened(a, a_settings, runs), opened(b, b_settings, runs)
    if isinstance(one, Module):
        raise ValueError(
            f"the steps of {one.title} have no names; give it as the second model, and first a "
            "run, a Hugging Face folder, or a model of transformers"
        )
    two.loss, two.optimizer = loss or two.loss, optimizer or two.optimizer
    if isinstance(two, Module) and one.settings.engine != "torch":
        raise ValueError("JAX computes in float32 here: remove engine=jax from one side")
    one.loss = one.optimizer = None  # those of its file are for B
    array, notes = chosen(tokens, one, two)
    if backward:
        _require_training(one, two, array)
    try:
        report = _compared(one, two, array)
    except Interrupted as error:
        raise ValueError(f"{one.title} raised {error}") from error
    if backward:
        report = _with_training(report, one, two, array)
    return replace(report, notes=(*notes, *report.notes))


def _compared(one: Named | Recorded, two: Named | Module | Recorded, tokens: np.ndarray) -> Report:
    """Compare two sides on tokens (batch, tokens)."""
    formats = [side.settings.dtype or "float32" for side in (one, two)]
    coarse = max(formats, key=lambda name: torch.finfo(getattr(torch, name)).eps)
    ruler = next((side.in_torch for side in (one, two) if isinstance(side, Named)), None)
    exact: Steps = {} if ruler is None else ruler.steps(tokens, "float64")
    limits = {} if ruler is None else _limits(ruler, tokens, exact, "float32")
    has_64 = isinstance(one, Named) and one.settings.engine == "torch"
    steps = exact if has_64 else one.steps(tokens, formats[0])
    steps, notes = _until_nan(steps, one.title)
    limits = {name: limits.get(name, RECORDED) for name in steps}
    loose = limits
    if ruler is not None and coarse != "float32":
        loose = _limits(ruler, tokens, exact, coarse)
    if isinstance(two, Module):
        report = by_numbers.compared(one, two, tokens, steps, limits)
    else:
        has_64 = has_64 and isinstance(two, Named) and two.settings.engine == "torch"
        kinds = ("float64", "float64") if has_64 else (formats[0], formats[1])
        if not has_64 and isinstance(one, Named) and one.settings.engine == "torch":
            steps = {name: x for name, x in one.steps(tokens, kinds[0]).items() if name in steps}
        if not has_64:
            limits = {name: loose.get(name, RECORDED) for name in steps}
            steps, more = _until_overflow(steps, limits, coarse)
            notes += more
        report = by_name.compared(one, two, tokens, steps, limits, kinds)
        both = (one.settings, two.settings)
        if report.is_same and has_64 and any(x.attention or x.dtype or x != both[0] for x in both):
            notes += report.notes
            report = _with_kernels(one, two, tokens, loose, formats)
    return replace(report, notes=(*notes, *report.notes))


def _with_kernels(
    one: Any, two: Any, tokens: np.ndarray, limits: Limits, formats: Sequence[str]
) -> Report:
    """Compare two models with the number formats and kernels of their settings.

    Kernels have no steps inside of an attention: if one is wrong, its context is.
    """
    steps = one.steps(tokens, formats[0], is_inside=False)
    steps, notes = _until_overflow(steps, limits, " or ".join(dict.fromkeys(formats)))
    kinds = formats[0], formats[1]
    report = by_name.compared(one, two, tokens, steps, limits, kinds, is_inside=False)
    return replace(report, notes=(*notes, *report.notes))


def _limits(ruler: Named, tokens: np.ndarray, exact: Steps, dtype: str) -> dict[str, float]:
    """The largest differences that rounding explains, in this number format."""
    rounded, kind = ruler.steps(tokens, dtype), getattr(torch, dtype)
    return {name: limit(difference(x, rounded[name]), kind) for name, x in exact.items()}


def _until_overflow(steps: Steps, limits: Limits, dtype: str) -> tuple[Steps, list[str]]:
    """The steps before the first one whose numbers are too large for the number format."""
    kept, first = _until(steps, lambda name: not isfinite(limits[name]))
    if first is None:
        return steps, []
    return kept, [f"{first} is too large for {dtype}; only the steps before it are compared"]


def _until_nan(steps: Steps, title: str) -> tuple[Steps, list[str]]:
    """The steps before the first one that has NaN."""
    kept, first = _until(steps, lambda name: bool(steps[name].isnan().any()))
    if first is None:
        return steps, []
    if not kept:
        raise ValueError(f"{title} computes NaN in its first step, so nothing can be compared")
    return kept, [f"{title} computes NaN from {first} on; only the steps before it are compared"]


def _until(steps: Steps, is_bad: Callable[[str], bool]) -> tuple[Steps, str | None]:
    """The steps before the first bad one, and its name, if there is one."""
    first = next(filter(is_bad, steps), None)
    return dict(takewhile(lambda step: step[0] != first, steps.items())), first


def _require_training(one: Any, two: Any, tokens: np.ndarray) -> None:
    """Raise ValueError unless gradients can be compared."""
    for side in (one, two):
        settings = side.settings
        if isinstance(side, Recorded) or not settings.is_whole or settings.dtype is not None:
            raise ValueError(
                "--backward cannot be combined with trace files, dtype, cache and padding (got "
                f"{side.title})"
            )
    if tokens.shape[1] < 2:
        raise ValueError(f"gradients need at least 2 tokens (got {tokens.shape[1]})")


def _with_training(report: Report, one: Any, two: Any, tokens: np.ndarray) -> Report:
    """The report with the loss, the gradients and the updates."""
    if not report.is_same:
        note = "the gradients are not compared, because the logits differ already"
        return replace(report, notes=(*report.notes, note))
    result = trained(one, two, tokens)
    rows = [result.loss, *result.gradients, *result.updates]
    causes = [_cause(x) for x in (result.loss,) if x.is_wrong]
    for group in (result.gradients, result.updates):
        causes += [_cause(x) for x in [x for x in group if x.is_wrong][:1]]
    notes = list(report.notes)
    if not (two.optimizer or two.training):
        notes.append(f"the optimizer is not compared, because {two.title} has none")
    elif not result.updates:
        notes.append("the optimizer is not compared: updates are compared in PyTorch only")
    missing = [x.name for x in rows if x.value is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        notes.append(f"not found in {two.title} by their values: {missing[0]}{more}")
    values = {x.name: (x.expected, x.value) for x in rows if x.value is not None}
    return replace(
        report,
        steps=(*report.steps, *map(_training_row, rows)),
        causes=tuple(causes),
        is_proved=not any(x.is_wrong for x in result.gradients),
        notes=tuple(notes),
        values={**report.values, **values},
    )


def _training_row(x: Compared) -> Step:
    state = "not found" if x.value is None else "different" if x.is_wrong else "same"
    return Step(x.name, state, x.error, x.limit)


def _cause(x: Compared) -> Cause:
    assert x.value is not None
    return Cause(x.name, "", x.note or describe(x.expected, x.value, x.limit), False)
