"""Plots of time and memory against the length, with the slopes of T and T^2 for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from headway.bench.compare import Row, Table
from headway.bench.implementations import BASELINE, JAX
from headway.bench.pages import COLOURS, INK, MARKS, Picture, bare, draw, labels
from headway.bench.results import LITTLE, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[int, float]]


def sweep(tables: Sequence[Table]) -> list[Table]:
    """Return the tables that differ only in the number of tokens, if there are at least two."""
    for table in tables:
        same = [
            t for t in tables if replace(t.setting, tokens=1) == replace(table.setting, tokens=1)
        ]
        if len(same) > 1:
            return same
    return []


def plots(report: Results) -> Iterator[Picture]:
    """Yield the plots of a sweep: time, and memory if it was measured."""
    tables = sweep(report.tables)
    for name, label in (("time", "milliseconds per call"), ("memory", "MB beyond the inputs")):
        series = {row.name: [*_points(name, row.name, tables)] for t in tables for row in t.rows}
        series = {row: points for row, points in series.items() if points}
        if series:
            yield _plot(name, label, series, tables, report)


def _points(what: str, name: str, tables: Sequence[Table]) -> Iterator[tuple[int, float]]:
    for table in tables:
        value = next((_value(what, row) for row in table.rows if row.name == name), None)
        if value is not None:
            yield table.setting.tokens, value


def _value(what: str, row: Row) -> float | None:
    """Return milliseconds or MB; None if not measured."""
    if what == "time":
        return None if row.median is None else row.median * 1e3
    return None if row.memory is None or row.memory < LITTLE else row.memory / 1e6


def _plot(
    name: str, label: str, series: dict[str, Points], tables: Sequence[Table], report: Results
) -> Picture:
    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.095, 0.115, 0.67, 0.745), facecolor="none")
        _lines(axes, series)
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
        figure.text(0.085, 0.945, f"{name.capitalize()} against length", size=13, weight="bold")
        figure.text(0.085, 0.9, tables[0].setting.title(), size=9)
        figure.text(0.085, 0.005, report.described, size=6.5, alpha=0.7)

    return draw(name, (9, 5.6), paint)


def _lines(axes: Axes, series: dict[str, Points]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    bases = dict.fromkeys(name.removesuffix(JAX) for name in series if name != BASELINE)
    bases.pop(BASELINE, None)
    places = {base: place for place, base in enumerate(bases)}
    colours = {}
    for name, points in series.items():
        base = name.removesuffix(JAX)
        place = places.get(base, -1)
        colours[name] = INK if place < 0 else [*COLOURS][place % len(COLOURS)]
        axes.plot(
            *zip(*points, strict=True),
            color=colours[name],
            marker="." if place < 0 else MARKS[place // len(COLOURS) % len(MARKS)],
            markersize=4,
            linestyle="-" if name == base else (0, (4, 2)),
            linewidth=2.2 if name == BASELINE else 1.4,
        )
    lengths = sorted({tokens for points in series.values() for tokens, _ in points})
    axes.set_xticks(lengths, [f"{tokens:,}" for tokens in lengths])
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:,g}")
    axes.minorticks_off()
    bare(axes)
    _guides(axes, lengths)
    labels(axes, {name: points[-1] for name, points in series.items()}, colours)


def _guides(axes: Axes, lengths: list[int]) -> None:
    """Draw dotted lines that grow with T, from the lower left corner, and with T^2, to the upper
    right corner, where they overlap least with the curves."""
    low, high = axes.get_ylim()
    first, last, middle = lengths[0], lengths[-1], lengths[len(lengths) // 2]
    guides = ((1, "T", first, low * 1.5, (4, -14)), (2, "T²", last, high / 1.2, (-14, 4)))
    for power, name, tokens, height, offset in guides:
        start, at, end = (height * (x / tokens) ** power for x in (first, middle, last))
        axes.plot(
            [first, last], [start, end], color=INK, alpha=0.4, linestyle=(0, (1, 3)), zorder=1
        )
        axes.annotate(
            f"O({name})", (middle, at), offset, textcoords="offset points", alpha=0.6, size=9
        )
    axes.set_ylim(low, high)
