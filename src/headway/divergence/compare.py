"""`diff`: compare two models step by step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headway.divergence.backward import Compared, trained
from headway.divergence.calls import Call, Steps
from headway.divergence.inside import key_counts, needed_keys
from headway.divergence.looks import describe
from headway.divergence.measure import difference, limit
from headway.divergence.operations import Interrupted
from headway.divergence.report import Cause, Report, Step
from headway.divergence.search import MOST_CAUSES, Search
from headway.divergence.sides import Module, Named, Recorded, opened

BATCH, TOKENS = 2, 23  # of random tokens; not a usual number of heads or features
RECORDED = 2e-5  # the largest difference that rounding explains, between two trace files

Limits = Mapping[str, float]


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
    array, notes = _tokens(tokens, one, two)
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
    limits: dict[str, float] = {}
    exact: Steps = {}
    if ruler is not None:
        exact = ruler.steps(tokens, "float64")
        rounded, kind = ruler.steps(tokens, coarse), getattr(torch, coarse)
        limits = {name: limit(difference(x, rounded[name]), kind) for name, x in exact.items()}
    has_64 = isinstance(one, Named) and one.settings.engine == "torch"
    steps = exact if has_64 else one.steps(tokens, formats[0])
    steps, notes = _until_nan(steps, one.title)
    limits = {name: limits.get(name, RECORDED) for name in steps}
    if isinstance(two, Module):
        report = _searched(one, two, tokens, steps, limits)
    else:
        has_64 = has_64 and isinstance(two, Named) and two.settings.engine == "torch"
        kinds = ("float64", "float64") if has_64 else (formats[0], formats[1])
        if not has_64 and isinstance(one, Named) and one.settings.engine == "torch":
            steps = {name: x for name, x in one.steps(tokens, kinds[0]).items() if name in steps}
        report = _by_name(one, two, tokens, steps, limits, kinds)
        if report.is_same and has_64 and one.settings != two.settings:
            report = _with_kernels(one, two, tokens, limits, formats)
    return replace(report, notes=(*notes, *report.notes))


def _with_kernels(
    one: Any, two: Any, tokens: np.ndarray, limits: Limits, formats: Sequence[str]
) -> Report:
    """Compare two models with the number formats and kernels of their settings.

    Kernels have no steps inside of an attention: if one is wrong, its context is.
    """
    steps = one.steps(tokens, formats[0], is_inside=False)
    return _by_name(one, two, tokens, steps, limits, (formats[0], formats[1]), is_inside=False)


def _until_nan(steps: Steps, title: str) -> tuple[Steps, list[str]]:
    """The steps before the first one that has NaN."""
    names = [*steps]
    first = next((i for i, name in enumerate(names) if bool(steps[name].isnan().any())), None)
    if first is None:
        return steps, []
    if first == 0:
        raise ValueError(f"{title} computes NaN in its first step, so nothing can be compared")
    note = f"{title} computes NaN from {names[first]} on; only the steps before it are compared"
    return {name: steps[name] for name in names[:first]}, [note]


def _searched(
    one: Named | Recorded, two: Module, tokens: np.ndarray, steps: Steps, limits: Limits
) -> Report:
    """Compare with a module without names."""
    title, call, whole = two.title, None, steps
    notes: list[str] = []
    try:
        if two.settings.cache:
            call, where = _first_call(two, tokens, steps, limits)
            title, whole, steps = f"{title}, {where}", steps, call.of_text(steps)
        run = two.runner(tokens, "float64", call)
        search = Search(steps, limits, run)
        if call is not None:  # a window may keep only the last keys
            counts = [n for n in key_counts(search.first, steps) if n >= needed_keys(steps)]
            windows = [Search(call.of_text(whole, n), limits, run) for n in counts]
            search = max((search, *windows), key=lambda x: len(x.matched))
            steps = dict(search.steps)
        their, our = search.first[-1].value, steps.get("logits")
        if our is not None and their.ndim == our.ndim and their.shape[-1] != our.shape[-1]:
            notes.append(_vocabularies(our.shape[-1], their.shape[-1]))
            size = min(our.shape[-1], their.shape[-1])
            steps = {**steps, "logits": our[..., :size]}
            search = Search(steps, limits, two.runner(tokens, "float64", call, size))
        causes = search.all() if our is not None else []
    except Interrupted as error:
        search = Search(steps, limits, lambda *_: error.done)
        causes = []
        notes.append(f"{two.title} raised {error}; only the steps before it are compared")
    wrong = {cause.name for cause in causes}
    rows, values = [], {}
    for name in search.names:
        site = search.at_first.get(name)
        if site is not None and name not in wrong:
            value = site.layout.undo(search.first[site.number].value, steps[name].shape)
            rows.append(Step(name, "same", difference(steps[name], value), limits[name]))
            values[name] = (steps[name], value)
        else:
            state = "different" if name in wrong or causes else "not found"
            rows.append(Step(name, state, None, limits[name]))
    shown = []
    for cause in causes:
        looks = cause.note
        if not looks and cause.value is not None and cause.right is not None:
            looks = describe(cause.right, cause.value, limits[cause.name])
            values[cause.name] = (cause.right, cause.value)
        shown.append(Cause(cause.name, cause.place, looks, cause.in_all_layers))
    is_proved = search.is_healed and "logits" in steps
    titles = one.title, title
    return Report(titles, "float64", tuple(rows), tuple(shown), is_proved, tuple(notes), values)


def _first_call(two: Module, tokens: np.ndarray, steps: Steps, limits: Limits) -> tuple[Call, str]:
    """The first call with a cache whose logits differ, or the last one, and where it is."""
    for call, logits in two.logits(tokens, "float64"):
        expected = call.of_text({"logits": steps["logits"]})["logits"]
        if not _is_same(expected, logits, limits["logits"]):
            break
    where = f"token {call.start}" if call.stop == call.start + 1 else f"tokens from {call.start}"
    return call, f"{where} of {tokens.shape[1]} with its cache"


def _by_name(
    one: Named | Recorded,
    two: Named | Recorded,
    tokens: np.ndarray,
    a: Steps,
    limits: Limits,
    formats: tuple[str, str],
    *,
    is_inside: bool = True,
) -> Report:
    """Compare steps `a` with those of the same names, in these formats of the sides."""
    names = [*a]
    notes: list[str] = []
    sizes = {side.vocabulary for side in (one, two) if side.vocabulary is not None}
    most = min(sizes) if len(sizes) > 1 else None

    def run(changes: Mapping[str, Tensor] = {}) -> Steps:
        whole = {n: x for n, x in changes.items() if most is None or n != "logits"}
        return _cut(two.steps(tokens, formats[1], whole, is_inside=is_inside), most)

    a = _cut(a, most)
    try:
        at_first = b = run()
    except Interrupted as error:
        at_first = b = error.done
        notes.append(f"{two.title} raised {error}; only the steps before it are compared")
    names = [name for name in names if name in b or not notes]
    layers = [_layers(x) for x in (a, at_first)]
    if layers[0] != layers[1] and not notes and "logits" in a:
        notes.append(f"{one.title} has {layers[0]} layers, and {two.title} has {layers[1]}")
    replaced: dict[str, Tensor] = {}
    causes: list[Cause] = []

    def is_healed(b: Steps) -> bool:
        return "logits" in a and _is_same(a["logits"], b.get("logits"), limits["logits"])

    if is_healed(b) and (wrong := _first_wrong(a, b, limits, {})) is not None:
        notes.append(f"the logits agree although steps differ, {wrong} first")
    while not is_healed(b) and len(causes) < MOST_CAUSES:
        name = _first_wrong({n: a[n] for n in names}, b, limits, replaced)
        if name is None:
            break
        if name not in b:
            causes.append(Cause(name, "", f"{two.title} has no such layer", False))
            break
        looks = describe(a[name], b[name], limits[name])
        if b[name].shape != a[name].shape or notes or isinstance(two, Recorded):
            causes.append(Cause(name, "", looks, False))  # nothing can be replaced
            break
        same = {n: x for n, x in a.items() if _kind(n) == _kind(name)}
        everywhere, single = run({**replaced, **same}), run({**replaced, name: a[name]})
        healed = _count(a, everywhere, limits) - _count(a, single, limits)
        in_all = healed > len(same) - 1  # more than the steps that were replaced
        replaced |= same if in_all else {name: a[name]}
        b = everywhere if in_all else single
        causes.append(Cause(name, "", looks, in_all))
    rows = tuple(_row(name, a[name], at_first.get(name), limits[name]) for name in a)
    used = formats[0] if formats[0] == formats[1] else " and ".join(formats)
    values = {name: (a[name], at_first[name]) for name in a if name in at_first}
    titles = one.title, two.title
    return Report(titles, used, rows, tuple(causes), is_healed(b), tuple(notes), values)


def _cut(steps: Steps, vocabulary: int | None) -> Steps:
    """The steps with the logits of the first tokens of the vocabulary."""
    if vocabulary is None or "logits" not in steps:
        return steps
    return {**steps, "logits": steps["logits"][..., :vocabulary]}


def _layers(names: Iterable[str]) -> int:
    return len({match[0] for name in names if (match := re.match(r".*\bblocks\.\d+", name))})


def _first_wrong(a: Steps, b: Steps, limits: Limits, replaced: Mapping[str, Tensor]) -> str | None:
    layers = {name.partition(".attention")[0] for name in b}
    for name, value in a.items():
        if name in b and name not in replaced and not _is_same(value, b[name], limits[name]):
            return name
        block = re.match(r".*\bblocks\.\d+", name)
        if name not in b and block is not None and block[0] not in layers:
            return name
    return None


def _is_same(a: Tensor, b: Tensor | None, most: float) -> bool:
    return b is not None and a.shape == b.shape and difference(a, b) <= most


def _count(a: Steps, b: Steps, limits: Limits) -> int:
    return sum(_is_same(a[name], b.get(name), limits[name]) for name in a)


def _row(name: str, a: Tensor, b: Tensor | None, most: float) -> Step:
    if b is None:
        return Step(name, "not found", None, most)
    if a.shape != b.shape:
        return Step(name, "different", None, most)
    error = difference(a, b)
    return Step(name, "same" if error <= most else "different", error, most)


def _kind(name: str) -> str:
    return re.sub(r"blocks\.\d+", "blocks.*", name)


def _with_training(report: Report, one: Any, two: Any, tokens: np.ndarray) -> Report:
    """The report with the loss, the gradients and the updates."""
    if not report.is_same:
        note = "the gradients are not compared, because the logits differ already"
        return replace(report, notes=(*report.notes, note))
    for side in (one, two):
        if isinstance(side, Recorded) or not side.settings.is_whole:
            raise ValueError(
                f"gradients need a model, without cache and padding (got {side.title})"
            )
    result = trained(one, two, tokens, one.settings.dtype or "float32")
    rows = [result.loss, *result.gradients, *result.updates]
    causes = [_cause(x) for x in (result.loss,) if x.is_wrong]
    for group in (result.gradients, result.updates):
        causes += [_cause(x) for x in [x for x in group if x.is_wrong][:1]]
    notes = list(report.notes)
    if not result.updates:
        notes.append(f"the optimizer is not compared, because {two.title} has none")
    missing = [x.name for x in rows if x.value is None]
    if missing:
        notes.append(f"{len(missing)} gradients were not found in {two.title}: {missing[0]} ...")
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
    error = None if x.value is None else difference(x.expected, x.value)
    return Step(x.name, state, error, x.limit)


def _cause(x: Compared) -> Cause:
    assert x.value is not None
    return Cause(x.name, "", x.note or describe(x.expected, x.value, x.limit), False)


def _tokens(tokens: Any, one: Any, two: Any) -> tuple[np.ndarray, list[str]]:
    """The tokens (batch, tokens), and notes. Raises ValueError if they do not fit the models."""
    sides = one, two
    sizes = [side.vocabulary for side in sides if side.vocabulary is not None]
    notes = [_vocabularies(*sizes)] if len({*sizes}) > 1 else []
    padding = [side.settings.pad_left + side.settings.pad_right for side in sides]
    rooms = [
        (side.context - more, side.context)
        for side, more in zip(sides, padding, strict=True)
        if side.context is not None
    ]
    room, context = min(rooms, default=(TOKENS, TOKENS))
    if tokens is None:
        recorded = next((side.tokens for side in sides if isinstance(side, Recorded)), None)
        shape = BATCH, max(min(TOKENS, room), 1)
        random = np.random.default_rng(0).integers(0, min(sizes, default=1), shape)
        tokens = random if recorded is None else recorded
    elif isinstance(tokens, str):
        tokens = _encoded(tokens, sides, notes)
    array = np.atleast_2d(np.asarray(tokens))
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not array.size:
        given = f"{array.dtype} {array.shape}"
        raise ValueError(f"tokens must be integers (batch, tokens) (got {given})")
    if rooms and array.shape[1] > room:
        what = f"{array.shape[1]} tokens{' with padding' * any(padding)}"
        raise ValueError(f"{what} do not fit a context of {context}; give fewer")
    if sizes and (array.min() < 0 or array.max() >= min(sizes)):
        raise ValueError(f"tokens must be from 0 to {min(sizes) - 1} (got {array.max()})")
    return array.astype(np.int64), notes


def _vocabularies(one: int, two: int) -> str:
    return (
        f"the models have vocabularies of {one:,} and {two:,} tokens; the logits of the first "
        f"{min(one, two):,} are compared"
    )


def _encoded(text: str, sides: Sequence[Any], notes: list[str]) -> np.ndarray:
    """The tokens of a text, by the tokenizer of the first side that has one.

    Raises ValueError without a tokenizer or tokens.
    """
    rows = [(side.title, side.tokenizer.prompt(text)) for side in sides if side.tokenizer]
    if not rows:
        raise ValueError("no side has a tokenizer; omit the text to compare random tokens")
    if len(rows) == 2 and not np.array_equal(rows[0][1], rows[1][1]):
        notes.append(
            f"the tokenizers of {rows[0][0]} and {rows[1][0]} give other tokens for this text "
            f"({len(rows[0][1])} and {len(rows[1][1])}); both models get the first ones"
        )
    if not len(rows[0][1]):
        raise ValueError("the text is empty; give one with at least one character")
    row: np.ndarray = rows[0][1][None]
    return row
