"""Print a rung in the terminal: why it exists, and every step of an example in color.

Large values are bright in a dark terminal and dark in a light one. A terminal cannot be asked
reliably which one it is: the variable COLORFGBG, which some set, decides, and otherwise it counts
as dark. `COLORFGBG="0;15" headway ladder` is for a light terminal.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from headway.ladder.differences import BLOCK, Differences, what_differs
from headway.ladder.rung import SENTENCE, Rung, run_example, words_and_inputs
from headway.ladder.rungs import LADDER
from headway.ladder.why import WHY
from headway.tracing import INSIDE

Colors = tuple[tuple[int, int, int], ...]

# Color scales that color-blind readers can order: the weights from 0 to the largest, other numbers
# from blue to red. 0 is close to the color of the background.
_WEIGHTS_DARK = ((36, 34, 43), (83, 64, 124), (141, 111, 196), (202, 180, 238), (236, 226, 251))
_WEIGHTS_LIGHT = ((247, 245, 251), (193, 182, 222), (134, 108, 184), (79, 41, 132), (51, 12, 95))
_SIGNED_DARK = ((146, 197, 222), (33, 102, 172), (34, 34, 42), (178, 24, 43), (244, 165, 130))
_SIGNED_LIGHT = ((5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31))
_ROLES = {"queries": "blue", "keys": "dark_orange", "values": "green"}
_LABEL = 7  # the longest label of a row or column
_GAP = 2  # between two matrices
_MASKED = "╱╱╱"


class _Matrix(NamedTuple):
    """A matrix with its title; columns: the labels of the columns."""

    title: Text
    values: Float[np.ndarray, "rows columns"]
    colors: Colors | None = None
    columns: Sequence[str] = ()
    forbidden: Bool[np.ndarray, "rows columns"] | None = None

    @property
    def cell(self) -> int:
        """The width of a number in the terminal."""
        numbers = [len(f"{number:.4f}") for number in self.values.flat]
        return max(numbers + [_label(name).cell_len for name in self.columns])

    @property
    def width(self) -> int:
        """The width of the matrix with its title."""
        columns = (self.cell + 1) * self.values.shape[1] - 1
        return max(int(columns), self.title.cell_len)


def show(rung: Rung, text: str = SENTENCE, console: Console | None = None) -> None:
    """Print the example of a rung on a text. Raises ValueError for a text without words."""
    if not text.split():
        raise ValueError("the text must have at least one word")
    console = console or Console()
    console.print(picture(rung, text, console.width, is_dark()))


def is_dark() -> bool:
    """Whether the background of the terminal is dark. COLORFGBG is "foreground;background"."""
    return os.environ.get("COLORFGBG", "").rpartition(";")[2] not in ("7", "15")


def picture(rung: Rung, text: str, width: int, dark: bool = True) -> RenderableType:
    """The output of `show`, at most `width` columns wide.

    The matrices show only the first words of the text, as many as fit.
    """
    words, inner = text.split(), width - 4
    fit = max(2, (inner - _LABEL - _GAP + 1) // (_LABEL + 1))
    labels = words[:fit]
    why = WHY[rung.name]
    before = _previous(rung)
    report = "" if why.report is None else f" ({why.report})"
    parts: list[RenderableType] = [
        Text(rung.idea[0].upper() + rung.idea[1:] + "."),
        Text(rung.equation, style="cyan"),
        Text(rung.source, style="dim"),
        Text.assemble(("Why: ", "bold"), why.problem),
        Text.assemble(("Without it: ", "bold"), why.without),
        Text.assemble(("Measured: ", "bold"), why.measured, (report, "dim")),
    ]
    if len(words) > fit:
        parts.append(Text(f"(showing the first {fit} of {len(words)} words)"))
    matrices = _matrices(rung, before, text, fit, dark)
    different = what_differs(rung, text)
    if different is not None:
        parts += _differences(different, inner)
    else:
        if before is not None:
            note = f"new and changed: compared with the rung {before.name}"
            parts.append(Text(note, style="yellow"))
        parts += _steps(matrices, labels, inner)
    parts.append(Rule("result: one row per token", style="dim"))
    parts += _side_by_side([*matrices["context"], *matrices.get("output", [])], labels, inner)
    return Panel(Group(*parts), title=f"[bold]{escape(rung.name)}[/]", title_align="left")


def _steps(
    matrices: dict[str, list[_Matrix]], labels: Sequence[str], width: int
) -> Iterator[RenderableType]:
    """The steps up to the weights, one head after another."""
    heads = len(matrices["context"])
    for head in range(heads):
        which = f"head {head}: " if heads > 1 else ""
        legend = f"; {_MASKED} masked" if "masked" in matrices else ""
        parts = {
            f"{which}one row per token": ("x", "queries", "keys", "values"),
            f"{which}one row per query, one column per key{legend}": INSIDE,
        }
        for title, names in parts.items():
            chosen = [m for name in names for m in matrices.get(name, [])[head : head + 1]]
            yield Rule(Text(title), style="dim")
            yield from _side_by_side(chosen, labels, width)


def _previous(rung: Rung) -> Rung | None:
    return next((a for a, b in pairwise(LADDER.values()) if b.name == rung.name), None)


def _arrays(rung: Rung, text: str) -> dict[str, list[Float[np.ndarray, "tokens columns"]]]:
    """The steps of the example in order, as one matrix per head."""
    arrays = {"x": [words_and_inputs(text)[1]]}
    for name, value in run_example(rung, text)[1].items():
        heads = value.reshape((-1, *value.shape[-2:]))
        arrays.setdefault(name.rpartition(".")[2], []).extend(heads)
    return arrays


def _matrices(
    rung: Rung, before: Rung | None, text: str, fit: int, dark: bool
) -> dict[str, list[_Matrix]]:
    """The matrix of each head by step; the titles say what is new since the rung before."""
    arrays = _arrays(rung, text)
    earlier = None if before is None else _arrays(before, text)
    weights, signed = (_WEIGHTS_DARK, _SIGNED_DARK) if dark else (_WEIGHTS_LIGHT, _SIGNED_LIGHT)

    def matrix(step: str, head: int, values: Float[np.ndarray, "rows columns"]) -> _Matrix:
        with_head = step == "context" and len(arrays[step]) > 1
        name = f"{step}, head {head}" if with_head else step
        title = Text(name, style=f"bold {_ROLES.get(step, '')}")
        if earlier is not None:
            title.append(_news(values, earlier.get(step, [])[head:]), style="bold yellow")
        if step not in INSIDE:
            return _Matrix(title, values[:fit], signed)
        forbidden = None
        if step in ("masked", "weights", "dropped") and "masked" in arrays:
            forbidden = np.isneginf(arrays["masked"][head])
        colors = weights if step in ("weights", "dropped") else signed
        return _Matrix(title, values[:fit, :fit], colors, text.split()[:fit], forbidden)

    return {
        step: [matrix(step, head, values) for head, values in enumerate(heads)]
        for step, heads in arrays.items()
    }


def _news(
    values: Float[np.ndarray, "rows columns"], earlier: list[Float[np.ndarray, "rows others"]]
) -> str:
    """Compare a matrix with the first of the earlier ones, which has the same step and head."""
    if not earlier:
        return " (new)"
    same = earlier[0].shape == values.shape and np.allclose(earlier[0], values)
    return "" if same else " (changed)"


def _differences(different: Differences, width: int) -> Iterator[RenderableType]:
    """What differs between a rung and the rung that it equals."""
    blocks = f" (blocks of {BLOCK} keys)" if different["running"] else ""
    yield Rule(f"same result as {different['equals']} by design; what differs", style="dim")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    equals, name = different["products"]
    table.add_row("", equals, name + blocks)
    table.add_row("matrix products", *map("{:,}".format, different["products"].values()))
    table.add_row("numbers stored for scores", *map("{:,}".format, different["scores"].values()))
    yield table
    heads = [
        _Matrix(
            Text(f"head {head}", style="bold"),
            np.array([[s["largest"], s["total"], *s["context"], *s["result"]] for s in steps]),
            columns=(
                "m",
                "l",
                *_names("c", steps[0]["context"]),
                *_names("c/l", steps[0]["result"]),
            ),
        )
        for head, steps in enumerate(different["running"])
    ]
    if heads:
        rows = [f"{step['keys']} keys" for step in different["running"][0]]
        yield Rule("the last query: running maximum m, sum l and context c", style="dim")
        yield from _side_by_side(heads, rows, width)


def _names(name: str, values: Sequence[float]) -> list[str]:
    return [f"{name} {column}" for column in range(len(values))]


def _side_by_side(
    matrices: Sequence[_Matrix], rows: Sequence[str], width: int
) -> Iterator[RenderableType]:
    """The matrices in as few lines as fit into the width, with the labels of the rows."""
    line: list[_Matrix] = []
    used = _LABEL
    for matrix in matrices:
        if line and used + _GAP + matrix.width > width:
            yield _line(line, rows)
            line, used = [], _LABEL
        line.append(matrix)
        used += _GAP + matrix.width
    if line:
        yield _line(line, rows)


def _line(matrices: Sequence[_Matrix], rows: Sequence[str]) -> Table:
    line = Table.grid(padding=(0, _GAP))
    has_columns = any(matrix.columns for matrix in matrices)
    labels = [Text("")] * (2 if has_columns else 1) + [_label(row) for row in rows]
    line.add_row(Group(*labels), *(Group(m.title, _table(m)) for m in matrices))
    return line


def _label(word: str) -> Text:
    text = Text(word, style="dim")
    text.truncate(_LABEL, overflow="ellipsis")
    return text


def _table(matrix: _Matrix) -> Table:
    table = Table.grid(padding=(0, 1))
    for _ in range(matrix.values.shape[1]):
        table.add_column(width=matrix.cell, justify="right")
    if matrix.columns:
        table.add_row(*map(_label, matrix.columns))
    largest = float(np.max(np.abs(matrix.values), where=np.isfinite(matrix.values), initial=1e-12))
    for i, row in enumerate(matrix.values):
        table.add_row(
            *(
                Text(_MASKED, style="dim")
                if matrix.forbidden is not None and matrix.forbidden[i, j]
                else _number(number, largest, matrix)
                for j, number in enumerate(row)
            )
        )
    return table


def _number(number: float, largest: float, matrix: _Matrix) -> Text:
    """A number on the color of its place on the scale: from 0, or from -largest if it is signed."""
    text = Text(f"{number:.4f}".rjust(matrix.cell))
    if (colors := matrix.colors) is not None:
        signed = colors in (_SIGNED_DARK, _SIGNED_LIGHT)
        place = (number / largest + 1) / 2 if signed else number / largest
        level = place * (len(colors) - 1)
        low = min(int(level), len(colors) - 2)
        pairs = zip(colors[low], colors[low + 1], strict=True)
        red, green, blue = (round(a + (b - a) * (level - low)) for a, b in pairs)
        text_color = "#000000" if 0.3 * red + 0.6 * green + 0.1 * blue > 110 else "#ffffff"
        text.stylize(f"{text_color} on rgb({red},{green},{blue})")
    return text
