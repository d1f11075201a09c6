"""Compare two models whose steps have the same names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from headway.divergence.calls import Steps
from headway.divergence.looks import describe
from headway.divergence.measure import Limits, difference
from headway.divergence.names import block, in_any_layer, kind
from headway.divergence.operations import Interrupted
from headway.divergence.report import Cause, Report, Step
from headway.divergence.search import MOST_CAUSES
from headway.divergence.sides import Named, Recorded
from headway.tracing import INSIDE


def compared(
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
        fitting = {n: x for n, x in changes.items() if most is None or n != "logits"}
        return _cut(two.steps(tokens, formats[1], fitting, is_inside=is_inside), most)

    a, can_replace = _cut(a, most), not isinstance(two, Recorded)
    try:
        at_first = b = run()
    except Interrupted as error:
        at_first = b = error.done
        can_replace, names = False, [name for name in names if name in b]
        notes.append(f"{two.title} raised {error}; only the steps before it are compared")
    layers = [_layers(x) for x in (a, at_first)]
    if layers[0] != layers[1] and not notes and "logits" in a:
        can_replace = False
        notes.append(f"{one.title} has {layers[0]} layers, and {two.title} has {layers[1]}")
    replaced: dict[str, Tensor] = {}
    causes: list[Cause] = []

    def is_healed(b: Steps) -> bool:
        return "logits" in a and is_same(a["logits"], b.get("logits"), limits["logits"])

    if is_healed(b) and (wrong := _first_wrong(a, b, limits, {})) is not None:
        notes.append(f"the logits agree although steps differ, {wrong} first")
    while not is_healed(b) and len(causes) < MOST_CAUSES:
        name = _first_wrong({n: a[n] for n in names}, b, limits, replaced)
        if name is None:
            break
        if name not in b:
            causes.append(Cause(name, "", f"{two.title} has no such layer", False, False))
            break
        looks = describe(a[name], b[name], limits[name])
        if b[name].shape != a[name].shape or not can_replace:
            causes.append(Cause(name, "", looks, False, is_replaced=False))
            break
        same = {n: x for n, x in a.items() if in_any_layer(n) == in_any_layer(name)}
        everywhere, single = run({**replaced, **same}), run({**replaced, name: a[name]})
        healed = _count(a, everywhere, limits) - _count(a, single, limits)
        in_all = healed > len(same) - 1  # more than the steps that were replaced
        replaced |= same if in_all else {name: a[name]}
        b = everywhere if in_all else single
        before = names[max(names.index(name) - 1, 0)]
        if before not in b and kind(before) in INSIDE:  # such as a mask
            name, looks = before, f"{two.title} has no such step"
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
    return len({block(name) for name in names if block(name) != name})


def _first_wrong(a: Steps, b: Steps, limits: Limits, replaced: Mapping[str, Tensor]) -> str | None:
    layers = {block(name) for name in b}
    for name, value in a.items():
        if name in b and name not in replaced and not is_same(value, b[name], limits[name]):
            return name
        if name not in b and block(name) != name and block(name) not in layers:
            return name
    return None


def is_same(a: Tensor, b: Tensor | None, most: float) -> bool:
    """Whether two values of a step are equal, up to this difference."""
    return b is not None and a.shape == b.shape and difference(a, b) <= most


def _count(a: Steps, b: Steps, limits: Limits) -> int:
    return sum(is_same(a[name], b.get(name), limits[name]) for name in a)


def _row(name: str, a: Tensor, b: Tensor | None, most: float) -> Step:
    if b is None:
        return Step(name, "not found", None, most)
    if a.shape != b.shape:
        return Step(name, "different", None, most)
    error = difference(a, b)
    return Step(name, "same" if error <= most else "different", error, most)
