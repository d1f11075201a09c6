"""How grades and exercises look in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from headway.learn.exercise import Exercise, exercises, find
from headway.learn.folder import Folder, Progress
from headway.learn.grades import Example, Grade

MOST = 8  # rows and columns of a matrix that are shown
GAP = 3  # columns between two matrices
MARKS = {"passed": ("✓", "green"), "open": ("▸", "bold"), "locked": ("·", "dim")}


def heading(exercise: Exercise, file: Path) -> RenderableType:
    """Return the line above a grade."""
    title = Text.assemble((f"{exercise.number} {exercise.name}", "bold"), f"  {file}")
    return Group("", Rule(title, style="dim", align="left"))


def grade(exercise: Exercise, file: Path, grade: Grade, width: int) -> RenderableType:
    """Return a grade: the message, the line of code, and the smallest example."""
    mark = ("✓ ", "bold green") if grade.passed else ("✗ ", "bold red")
    parts: list[RenderableType] = [Text.assemble(mark, (grade.message, "bold"))]
    if grade.line is not None:
        line = Text.assemble((f"  {file}:{grade.line}  ", "dim"), (grade.code, "cyan"))
        line.no_wrap, line.overflow = True, "ellipsis"
        parts.append(line)
    if grade.example is not None:
        parts += ["", *_example(grade.example, exercise.right, width)]
    if grade.printed:
        printed = Text("  printed: ", "dim") + Text(grade.printed.replace("\n", "\n           "))
        parts += ["", printed]
    if not grade.passed and grade.fault != "not-started":
        parts += ["", Text(f"  A hint: headway learn --hint {exercise.number}", "dim")]
    return Group(*parts)


def passed(folder: Folder, progress: Progress) -> RenderableType:
    """Return how many exercises are passed, and what is next."""
    if progress.current is None:
        return finished()
    following = next_step(progress.current, folder.file(progress.current))
    done = sum(name in exercises() for name in progress.passed)
    return Group(Text(f"  {done} of {len(exercises())} exercises passed.", "green"), "", following)


def finished() -> RenderableType:
    """Return what is said to a learner who has passed everything."""
    return Text(f"✓ All {len(exercises())} exercises passed.", "bold green")


def next_step(exercise: Exercise, file: Path) -> RenderableType:
    """Return what to do next."""
    return Group(
        Text.assemble((f"Next: {exercise.number} {exercise.name}", "bold"), f"  {exercise.title}"),
        Text.assemble("  Open ", (str(file), "bold cyan"), f", write {exercise.entry}, and save."),
    )


def locked(exercise: Exercise, current: Exercise) -> RenderableType:
    """Return what is said about a file whose exercise is locked."""
    before = find(str(exercise.number - 1))
    text = f"{exercise} is locked until you pass {before}"
    if before != current:
        text += f" (now you are at {current})"
    anyway = f"headway learn --check {exercise.number}"
    return Text(f"{text}; to grade it anyway: {anyway}", "yellow")


def table(listed: Sequence[dict[str, Any]], progress: Progress) -> Table:
    """Return all exercises with their state and the number of hints that were given."""
    view = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    view.add_column(justify="right")
    for row in listed:
        mark, style = MARKS[row["state"]]
        hints = progress.hints.get(row["name"], 0)
        view.add_row(
            Text(str(row["number"]), style),
            Text(f"{mark} {row['name']}", style),
            Text(row["title"], style),
            Text(f"{hints} hint{'s' * (hints > 1)}" if hints else "", "dim"),
        )
    return view


class _Block(NamedTuple):
    """A matrix with its title."""

    view: RenderableType
    width: int


def _example(example: Example, right: str, width: int) -> Iterator[RenderableType]:
    """Yield the lines of the smallest example: the inputs, then yours next to the right result."""
    wrong = example.wrong or ()
    inputs = [_block(name, value, wrong) for name, value in example.inputs.items()]
    yield from _side_by_side(inputs, width)
    yield ""
    is_marked, digits, results = example.wrong is not None, _digits(example), []
    if example.yours is not None:
        style = "bold white on red" if is_marked else ""
        results = [_block(f"your {example.what}", example.yours, wrong, digits, style)]
    style = "bold green" if is_marked else ""
    results.append(_block(f"{right} {example.what}", example.right, wrong, digits, style))
    yield from _side_by_side(results, width)


def _block(
    name: str, value: Any, at: tuple[int, ...], digits: int | None = None, mark: str = ""
) -> _Block:
    """Return a matrix. Of more than two axes, the matrix that has the cell `at` is shown.

    mark: the style of this cell, which also gets an arrow.
    """
    if not isinstance(value, np.ndarray):
        text = f"{name} = {value}"
        return _Block(Text(text), len(text))
    outer = value.shape[:-2]
    is_inside = len(at) == value.ndim and all(i < n for i, n in zip(at, outer, strict=False))
    leading = at[: len(outer)] if is_inside else (0,) * len(outer)
    rows = np.atleast_2d(value[leading])
    row, column = (0, 0, *at)[-2:] if mark else (0, 0)
    top, left = _first(row, rows.shape[0]), _first(column, rows.shape[1])
    shown = rows[top : top + MOST, left : left + MOST]
    title = name + (str(list(leading)) if leading else "")
    if shown.shape != rows.shape:
        title += f" ({rows.shape[0]} x {rows.shape[1]}, from [{top}, {left}])"
    digits = _decimals(value) if digits is None else digits
    texts = [[_number(number, digits) for number in numbers] for numbers in shown]
    wide = max((len(text) for numbers in texts for text in numbers), default=0)
    grid = Table.grid()
    for i, numbers in enumerate(texts, top):
        cells = []
        for j, text in enumerate(numbers, left):
            is_wrong = bool(mark) and (i, j) == (row, column)
            text = ("▸" if is_wrong else " ") + text.rjust(wide)
            cells.append(Text.assemble(" ", (text, mark if is_wrong else "")))
        grid.add_row(*cells)
    return _Block(Group(Text(title, "bold"), grid), max(len(title), (wide + 2) * shown.shape[1]))


def _first(index: int, size: int) -> int:
    """Return the first of the rows or columns that are shown, so that `index` is among them."""
    return max(0, min(index - MOST // 2, size - MOST))


def _number(number: Any, digits: int) -> str:
    if isinstance(number, float) and np.isfinite(number):
        return f"{number:.{digits}f}" if abs(number) < 1e5 else f"{number:.2e}"
    return str(number)


def _decimals(values: np.ndarray) -> int:
    """Return how many decimals show the values exactly, up to three."""
    finite = values[np.isfinite(values)]
    return next((d for d in range(3) if np.allclose(finite, np.round(finite, d), atol=1e-6)), 3)


def _digits(example: Example) -> int:
    """Return enough decimals to tell the first wrong cell from the right one."""
    yours, right, at = example.yours, example.right, example.wrong
    if yours is None or at is None:
        return 2
    return next((d for d in (2, 4) if f"{yours[at]:.{d}f}" != f"{right[at]:.{d}f}"), 6)


def _side_by_side(blocks: Sequence[_Block], width: int) -> Iterator[RenderableType]:
    """Yield the blocks in as few lines as fit into the width."""
    line: list[_Block] = []
    for block in blocks:
        if line and sum(b.width + GAP for b in [*line, block]) > width:
            yield _line(line)
            line = []
        line.append(block)
    if line:
        yield _line(line)


def _line(blocks: Sequence[_Block]) -> Table:
    line = Table.grid(padding=(0, GAP, 0, 0))
    line.add_row(*(block.view for block in blocks))
    return line
