"""What the reports of the bench and the lab share: a page that needs nothing else (no network, no
script), light and dark, and pictures that are drawn once and suit both."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    """A plot, for a page and by itself."""

    name: str
    svg: str
    png: bytes


def page(title: str, body: str, style: str = "") -> str:
    """A whole page. style: what it has beside STYLE."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>\n{body}\n</html>\n"
    )


def draw(name: str, size: tuple[float, float], paint: Callable[[Figure], object]) -> Picture:
    """A picture, painted by a function. size: in inches."""
    import matplotlib  # late: a second

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a token may be "$$"
        "svg.hashsalt": name,  # several stand in one page, and their names must differ
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
    """A faint grid, and no frame above and at the right."""
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def inline(svg: str) -> str:
    """A plot as a part of the page: in the page's own colours, as wide as there is room."""
    svg = re.sub("<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub('<g id="[^"]*"', "<g", svg)  # there are several plots in a page
    svg = svg.replace(INK, "currentColor").replace(PAPER, "none")
    for light, dark in COLOURS.items():
        svg = svg.replace(light, f"light-dark({light}, {dark})")
    return svg


def labels(
    axes: Axes, ends: dict[str, tuple[float, float]], colours: dict[str, str], gap: float = 0.05
) -> None:
    """The names at the right, each with a thin line from where its own line ends.

    ends: in the coordinates of the data. gap: between two names, of the height.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    at = {name: tuple(to_axes.transform(end)) for name, end in ends.items()}
    names = sorted(at, key=lambda name: -at[name][1])
    gap = min(gap, 1 / len(names))
    heights: list[float] = []
    for name in names:
        wanted = at[name][1]
        heights.append(min(wanted, heights[-1] - gap) if heights else min(wanted, 1.0))
    for place in reversed(range(len(names))):  # none below the axis
        least = heights[place + 1] + gap if place + 1 < len(names) else 0.0
        heights[place] = max(heights[place], least)
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name, at[name], (1.04, height), xycoords="axes fraction", textcoords="axes fraction",
            color=colours[name], va="center", annotation_clip=False, size=9,
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "alpha": 0.6},
        )  # fmt: skip
