"""Progress bars, warnings, and stopping with Ctrl-C."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from headway.cli.processes import is_first

Show = Callable[[int, float, float | None, float], None]


@contextmanager
def progress(console: Console, steps: int) -> Iterator[Show]:
    """Show a progress bar; `show(step, loss, validation or None, tokens per second)` updates it.

    If the output is not a terminal, each validation prints a line instead.
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


@contextmanager
def preparing(what: str = "preparing the tokens") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar, by default while a text is tokenized.

    `show(new units, total units)` updates it.
    """
    columns = (TextColumn(what), BarColumn(bar_width=24), TimeRemainingColumn())
    console = Console(stderr=True)
    is_shown = console.is_terminal and is_first()
    with Progress(*columns, console=console, disable=not is_shown, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(more: int, total: int) -> None:
            bar.update(task, advance=more, total=total)

        yield show


def warn(message: str) -> None:
    """Print a message on stderr; of several processes, the first one does."""
    if is_first():
        print(f"headway: {message}", file=sys.stderr)


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Delay Ctrl-C, so that the current step is completed.

    Inside the context, Ctrl-C only makes the yielded function return True.
    """
    signals: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
    try:
        yield lambda: bool(signals)
    finally:
        signal.signal(signal.SIGINT, previous)
