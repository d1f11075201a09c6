"""Compare a model whose steps have names with any other module, by the numbers it computes."""

from __future__ import annotations

import numpy as np

from headway.divergence.by_name import is_same
from headway.divergence.calls import Call, Steps
from headway.divergence.inside import key_counts, needed_keys
from headway.divergence.looks import describe
from headway.divergence.measure import Limits, difference
from headway.divergence.operations import Interrupted
from headway.divergence.report import Cause, Report, Step
from headway.divergence.search import Search
from headway.divergence.sides import Module, Named, Recorded
from headway.divergence.tokens import vocabularies


def compared(
    one: Named | Recorded, two: Module, tokens: np.ndarray, steps: Steps, limits: Limits
) -> Report:
    """Compare with a module without names."""
    title, call, text = two.title, None, steps
    notes: list[str] = []
    try:
        if two.settings.cache:
            call, where = _first_call(two, tokens, steps, limits)
            title, steps = f"{title}, {where}", call.of_text(text)
        run = two.runner(tokens, "float64", call)
        search = Search(steps, limits, run)
        if call is not None:  # a window may keep only the last keys
            counts = [n for n in key_counts(search.first, steps) if n >= needed_keys(steps)]
            windows = [Search(call.of_text(text, n), limits, run) for n in counts]
            search = max((search, *windows), key=lambda x: len(x.matched))
            steps = dict(search.steps)
        their, our = search.first[-1].value, steps.get("logits")
        if our is not None and their.shape[:-1] != our.shape[:-1]:
            shapes = f"{tuple(their.shape)} instead of {tuple(our.shape)}"
            raise ValueError(f"{two.title} returned logits {shapes}")
        if our is not None and their.ndim == our.ndim and their.shape[-1] != our.shape[-1]:
            notes.append(vocabularies(our.shape[-1], their.shape[-1]))
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
            is_after = bool(causes) and search.position[name] >= search.position[causes[0].name]
            state = "different" if is_after else "not found"
            rows.append(Step(name, state, None, limits[name]))
    shown = []
    for cause in causes:
        looks = cause.note
        if not looks and cause.value is not None and cause.right is not None:
            looks = describe(cause.right, cause.value, limits[cause.name])
            values[cause.name] = (cause.right, cause.value)
        is_replaced = bool(cause.sites)
        shown.append(Cause(cause.name, cause.place, looks, cause.in_all_layers, is_replaced))
    is_proved = search.is_healed and "logits" in steps
    titles = one.title, title
    return Report(titles, "float64", tuple(rows), tuple(shown), is_proved, tuple(notes), values)


def _first_call(two: Module, tokens: np.ndarray, steps: Steps, limits: Limits) -> tuple[Call, str]:
    """The first call with a cache whose logits differ, or the last one, and where it is."""
    for call, logits in two.logits(tokens, "float64"):
        expected = call.of_text(steps).get("logits")
        if expected is not None and not is_same(expected, logits, limits["logits"]):
            break
    where = f"token {call.start}" if call.stop == call.start + 1 else f"tokens from {call.start}"
    return call, f"{where} of {tokens.shape[1]}"
