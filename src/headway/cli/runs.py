"""`headway runs` and `headway info`: list the runs, and show the details of one."""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from headway.training.runs import Run

from headway.cli.parameters import RunName, Runs


def runs(folder: Runs = "runs", /) -> None:
    """List the runs of a folder with their data, progress and validation loss."""
    from headway.training.runs import runs_in  # late: `headway --help` is fast

    available = runs_in(Path(folder))
    if not available:
        raise ValueError(f"no runs in {folder}: create one with `headway train`, or check the path")
    table = Table("run", "text", "tokenizer", "model", box=None, header_style="bold")
    for name in ("steps", "validation", "seconds"):
        table.add_column(name, justify="right")
    for run in available:
        try:
            table.add_row(run.path.name, *_row(run))
        except ValueError as error:
            table.add_row(run.path.name, f"[red]{error}[/]")
    Console(highlight=False).print(table)


def info(run: RunName, /, *, runs: Runs = "runs") -> None:
    """Show the details of a run: its settings, its size, and whether its checkpoints are intact."""
    from headway.training import checkpoints  # late: `headway --help` is fast
    from headway.training.runs import find

    opened = find(run, runs, translates=None)
    config = opened.config
    console = Console(highlight=False, soft_wrap=True)
    text, tokenizer, model, steps, validation, seconds = _row(opened)
    console.print(
        f"[bold]{opened.path}[/]: {model} on {text} ({tokenizer}), step {steps}, "
        f"validation {validation} nats per token, {seconds} s\n"
    )
    run_only = {name: value for name, value in vars(config).items() if not is_dataclass(value)}
    for title, settings in (
        ("run", run_only),
        ("model", vars(config.model)),
        ("training", vars(config.training)),
    ):
        table = Table(title, "", box=None, header_style="bold", padding=(0, 2, 0, 0))
        for name, value in settings.items():
            nested = vars(value).items() if is_dataclass(value) else [("", value)]
            for inner, number in nested:
                table.add_row(f"{name}.{inner}" if inner else name, str(number)[:40])
        console.print(table, "")
    for checkpoint in checkpoints.complete(opened.checkpoints):
        try:
            tensors, about = checkpoints.load(checkpoint)
            checkpoints.load(checkpoint, "optimizer")
        except ValueError as error:
            console.print(f"[red]{error}[/]")
        else:
            count = sum(tensor.size for tensor in tensors.values())
            machine = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
            console.print(f"{checkpoint.name} verified: {count:,} parameters; {machine}")


def _row(run: Run) -> list[str]:
    """Return the text, tokenizer, model, steps, validation loss and seconds of a run."""
    config, steps = run.config, run.logged()
    done = steps[-1]["step"] if steps else 0
    validation = [step["validation"] for step in steps if step["validation"] is not None]
    model = config.model
    kind = config.seq2seq.kind if config.translates else config.rung or "multihead"
    return [
        Path(config.text).name,
        Path(config.tokenizer).name,
        f"{kind} {model.layers}x{model.width}, context {model.context}",
        f"{done:,}/{config.training.steps:,}",
        f"{validation[-1]:.3f}" if validation else "-",
        f"{steps[-1]['seconds']:,.0f}" if steps else "-",
    ]
