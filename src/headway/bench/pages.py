"""HTML pages and plots of the bench and the lab.

Pages are self-contained, without scripts, and adapt to light and dark mode, also their plots.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headway.cache import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PAPER = "#1c2024", "#fffffe"  # replaced in pages, for light and dark mode
# The colors of Okabe and Ito, which color-blind people can distinguish, for light and dark pages.
COLOURS = {
    "#0072b2": "#5aaee6",
    "#d55e00": "#f08a3c",
    "#00855f": "#2fc294",
    "#b4578c": "#dd92bd",
    "#b87d00": "#e6ac2e",
    "#2b8cc4": "#84ccf5",
}
MARKS = "osDv^P"

STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fff, #14171a);
  --ink: light-dark(#1c2024, #e6e8ea); --soft: light-dark(#5c636b, #a4abb3);
  --line: light-dark(#ddd, #343a40); --bar: light-dark(#d3e6f6, #1d3b54);
  --bad: light-dark(#b3141d, #ff7b80) }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.5rem 0 .4rem }
p { margin: .2rem 0 } .soft, li, th, .waiting { color: var(--soft) }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr));
  gap: 1rem; margin-top: 1.5rem } .plots svg { width: 100%; height: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th { font-weight: 500; font-size: .85rem }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line);
  white-space: nowrap }
.words { text-align: left }
.wrong, .failed { color: var(--bad) }
ul { margin: .4rem 0; padding-left: 1.2rem; font-size: .9rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }
dt { font-weight: 600 } dd { margin: 0 }
"""


class Picture(NamedTuple):
    """A plot as SVG and PNG."""

    name: str
    svg: str
    png: bytes


def write(folder: Path, texts: Mapping[str, str], pictures: Iterable[Picture]) -> None:
    """Write texts by file name, and each picture as SVG and PNG; replace older files."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    for name, text in texts.items():
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def page(title: str, body: str, style: str = "") -> str:
    """Return a page. style: CSS in addition to STYLE."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>\n{body}\n</html>\n"
    )


def draw(name: str, size: tuple[float, float], paint: Callable[[Figure], object]) -> Picture:
    """Return a picture that a function paints. size: in inches."""
    import matplotlib  # late: takes a second

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a token may be "$$"
        "svg.hashsalt": name,  # ids must differ between the plots of a page
        "font.family": "sans-serif",
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(settings):
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, facecolor=PAPER)
        paint(figure)
        text, picture = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        figure.savefig(picture, format="png", dpi=150)
    return Picture(name, text.getvalue(), picture.getvalue())


def bare(axes: Axes) -> None:
    """Draw a faint grid, and no frame at the top and on the right."""
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def inline(svg: str) -> str:
    """Return a plot as part of a page, with its colors and width."""
    svg = re.sub("<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub('<g id="[^"]*"', "<g", svg)  # ids must be unique in a page
    svg = svg.replace(INK, "currentColor").replace(PAPER, "none")
    for light, dark in COLOURS.items():
        svg = svg.replace(light, f"light-dark({light}, {dark})")
    return svg


def labels(
    axes: Axes, ends: dict[str, tuple[float, float]], colours: dict[str, str], gap: float = 0.05
) -> None:
    """Write the names on the right, each connected to the end of its curve.

    ends: in data coordinates. gap: the smallest distance of two names, relative to the height.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    at = {name: tuple(to_axes.transform(end)) for name, end in ends.items()}
    names = sorted(at, key=lambda name: -at[name][1])
    gap = min(gap, 1 / len(names))
    heights: list[float] = []
    for name in names:
        height = at[name][1]
        heights.append(min(height, heights[-1] - gap) if heights else min(height, 1.0))
    for row in reversed(range(len(names))):  # not below the axis
        least = heights[row + 1] + gap if row + 1 < len(names) else 0.0
        heights[row] = max(heights[row], least)
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name, at[name], (1.04, height), xycoords="axes fraction", textcoords="axes fraction",
            color=colours[name], va="center", annotation_clip=False, size=9,
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "alpha": 0.6},
        )  # fmt: skip
