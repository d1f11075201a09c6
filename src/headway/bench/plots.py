"""Time and memory against the length, with the slopes of T and T^2 to hold them against."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from headway.bench.compare import Row, Table
from headway.bench.report import LITTLE, Report
from headway.bench.sides import JAX, YARDSTICK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, PAPER = "#1c2024", "#fffffe"  # what the page replaces, to suit light and dark
# Okabe and Ito's colours, which people who see fewer colours can tell apart, dark enough to be read
# on paper; and the same for a dark page.
COLOURS = {
    "#0072b2": "#5aaee6",
    "#d55e00": "#f08a3c",
    "#00855f": "#2fc294",
    "#b4578c": "#dd92bd",
    "#b87d00": "#e6ac2e",
    "#2b8cc4": "#84ccf5",
}
_MARKS = "osDv^P"
_GAP = 0.05  # between labels, of the height

Points = list[tuple[int, float]]


class Plot(NamedTuple):
    """A picture of a sweep. name: time or memory."""

    name: str
    svg: str
    png: bytes


def sweep(tables: Sequence[Table]) -> list[Table]:
    """The tables that differ in their tokens alone, if there are at least two."""
    for table in tables:
        same = [
            t for t in tables if replace(t.setting, tokens=1) == replace(table.setting, tokens=1)
        ]
        if len(same) > 1:
            return same
    return []


def plots(report: Report) -> Iterator[Plot]:
    """Of the run's sweep, if it has one: time, and memory where it was measured."""
    tables = sweep(report.tables)
    for name, label in (("time", "milliseconds a run"), ("memory", "MB beyond the inputs")):
        series = {row.name: [*_points(name, row.name, tables)] for t in tables for row in t.rows}
        series = {side: points for side, points in series.items() if points}
        if series:
            yield _plot(name, label, series, tables, report)


def _points(what: str, name: str, tables: Sequence[Table]) -> Iterator[tuple[int, float]]:
    for table in tables:
        value = next((_value(what, row) for row in table.rows if row.name == name), None)
        if value is not None:
            yield table.setting.tokens, value


def _value(what: str, row: Row) -> float | None:
    """Milliseconds or MB; None for what was not measured or is wrong."""
    if row.verdict not in ("right", "skipped"):
        return None
    if what == "time":
        return None if row.median is None else row.median * 1e3
    return None if row.memory is None or row.memory < LITTLE else row.memory / 1e6


def _plot(
    name: str,
    label: str,
    series: dict[str, Points],
    tables: Sequence[Table],
    report: Report,
) -> Plot:
    import matplotlib  # late: a second

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the two stand in one page, and their names must differ
        "font.family": "sans-serif",
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(settings):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5.6), facecolor=PAPER)
        axes = figure.add_axes((0.085, 0.115, 0.68, 0.745), facecolor="none")
        _lines(axes, series)
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
        figure.text(0.085, 0.945, f"{name.capitalize()} against length", size=13, weight="bold")
        figure.text(0.085, 0.9, tables[0].setting.title(), size=9)
        figure.text(0.085, 0.005, report.described, size=6.5, alpha=0.7)
        text, picture = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        figure.savefig(picture, format="png", dpi=150)
    return Plot(name, text.getvalue(), picture.getvalue())


def _lines(axes: Axes, series: dict[str, Points]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    bases = dict.fromkeys(name.removesuffix(JAX) for name in series if name != YARDSTICK)
    bases.pop(YARDSTICK, None)
    places = {base: place for place, base in enumerate(bases)}
    colours = {}
    for name, points in series.items():
        base = name.removesuffix(JAX)
        place = places.get(base, -1)
        colours[name] = INK if place < 0 else [*COLOURS][place % len(COLOURS)]
        axes.plot(
            *zip(*points, strict=True),
            color=colours[name],
            marker="." if place < 0 else _MARKS[place // len(COLOURS) % len(_MARKS)],
            markersize=4,
            linestyle="-" if name == base else (0, (4, 2)),
            linewidth=2.2 if name == YARDSTICK else 1.4,
        )
    lengths = sorted({tokens for points in series.values() for tokens, _ in points})
    axes.set_xticks(lengths, [f"{tokens:,}" for tokens in lengths])
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:,g}")
    axes.minorticks_off()
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _guides(axes, lengths)
    _labels(axes, series, colours)


def _guides(axes: Axes, lengths: list[int]) -> None:
    """Dashed lines that grow with T and with T^2, from the lower left corner."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    for power, said in ((1, "T"), (2, "T²")):
        ends = [low * 1.5 * (each / lengths[0]) ** power for each in (lengths[0], lengths[-1])]
        axes.plot(
            [lengths[0], lengths[-1]], ends, color=INK, alpha=0.4, linestyle=(0, (1, 3)), zorder=1
        )
        # The label stands where the line leaves the picture.
        at = min(lengths[-1], lengths[0] * (high / low / 1.5) ** (1 / power))
        height = low * 1.5 * (at / lengths[0]) ** power
        axes.annotate(
            f"O({said})", (at, height), (-4, -14) if power == 1 else (3, -10),
            textcoords="offset points", ha="right" if power == 1 else "left", alpha=0.6, size=9,
        )  # fmt: skip


def _labels(axes: Axes, series: dict[str, Points], colours: dict[str, str]) -> None:
    """The names at the right, each with a thin line from where its own line ends."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = {name: tuple(to_axes.transform(points[-1])) for name, points in series.items()}
    names = sorted(series, key=lambda name: -ends[name][1])
    gap = min(_GAP, 1 / len(names))
    heights: list[float] = []
    for name in names:
        wanted = ends[name][1]
        heights.append(min(wanted, heights[-1] - gap) if heights else min(wanted, 1.0))
    for place in reversed(range(len(names))):  # none below the axis
        least = heights[place + 1] + gap if place + 1 < len(names) else 0.0
        heights[place] = max(heights[place], least)
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name, ends[name], (1.04, height), xycoords="axes fraction", textcoords="axes fraction",
            color=colours[name], va="center", annotation_clip=False, size=9,
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "alpha": 0.6},
        )  # fmt: skip
