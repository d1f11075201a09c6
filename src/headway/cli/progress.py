"""What one sees while something trains, and how one stops it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from headway.training.loop import Step, Trainer
    from headway.training.runs import Run

Show = Callable[[int, float, float | None, float], None]


@contextmanager
def progress(console: Console, steps: int) -> Iterator[Show]:
    """A live bar; `show(step, loss, validation or None, tokens a second)` moves it.

    Where the output is no terminal each validation is a line instead.
    """
    columns = (
        TextColumn("step {task.completed:,}/{task.total:,}"),
        BarColumn(bar_width=24),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("validation [bold]{task.fields[validation]}[/]"),
        TextColumn("{task.fields[speed]} tokens/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps, loss="", validation="…", speed="")

        def show(step: int, loss: float, validation: float | None, speed: float) -> None:
            fields = {"loss": f"{loss:.3f}", "speed": f"{speed:,.0f}"}
            if validation is not None:
                fields["validation"] = f"{validation:.3f}"
                if not console.is_terminal:
                    losses = f"loss {fields['loss']}  validation {fields['validation']}"
                    console.print(f"step {step:,}/{steps:,}  {losses}  {fields['speed']} tokens/s")
            bar.update(task, completed=step, **fields)  # type: ignore[arg-type]

        yield show


def follow(
    trainer: Trainer,
    run: Run,
    console: Console,
    again: str,
    *,
    each: Callable[[Step], object] = lambda done: None,
    glance: Callable[[], str],
) -> None:
    """Train to the end, with a bar; on Ctrl-C say how to go on, and exit.

    again: the command that resumes. each: told of every step. glance: what the model writes at a
    checkpoint.
    """
    from headway.training.loop import fit  # late: `headway --help` answers at once

    steps = run.config.training.steps
    with progress(console, steps) as show, interrupts() as interrupted:

        def moved(done: Step, seconds: float) -> None:
            show(done.step, done.loss, done.validation, done.tokens / seconds)
            each(done)

        def saved() -> None:
            if trainer.step < steps:
                line = " ".join(glance().split())
                console.print(Text(f"step {trainer.step:,} writes: {line}", style="dim"))

        fit(trainer, run, run.config, each=moved, saved=saved, interrupted=interrupted)
    if trainer.step < steps:
        console.print(
            f"stopped after step {trainer.step:,} and saved it in {run.checkpoints}\n"
            f"go on: {again} --resume {run.path.name}"
        )
        sys.exit(130)


@contextmanager
def preparing(console: Console, characters: int) -> Iterator[Callable[[int], None]]:
    """A bar while a text becomes tokens, gone when it has; `show(characters more)` moves it."""
    columns = (TextColumn("preparing the tokens"), BarColumn(bar_width=24), TimeRemainingColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("", total=characters)
        yield lambda more: bar.advance(task, more)


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C only sets what `interrupted()` tells, so that a step is never cut in two."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
