"""`headway runs` and `headway info`: list the runs, and show the details of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from headway.hf.folders import Folder
    from headway.training.runs import Run

from headway.cli.parameters import ModelName, Runs


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


def info(model: ModelName, /, *, runs: Runs = "runs") -> None:
    """Show the details of a model: its settings, its size, and whether its files are intact."""
    from headway.hf.stored import find  # late: `headway --help` is fast
    from headway.models.gpt import flat
    from headway.training import checkpoints

    stored = find(model, runs, translates=None)
    if stored.folder is not None:
        _folder_info(stored.folder)
        return
    assert stored.run is not None
    opened = stored.run
    config = opened.config
    console = Console(highlight=False, soft_wrap=True)
    text, tokenizer, model, steps, validation, seconds = _row(opened)
    console.print(
        f"[bold]{opened.path}[/]: {model} on {text} ({tokenizer}), step {steps}, "
        f"validation {validation} nats per token, {seconds} s\n"
    )
    run_only = {name: value for name, value in vars(config).items() if not is_dataclass(value)}
    tables = {"run": run_only, "model": flat(config.model), "training": flat(config.training)}
    for title, settings in tables.items():
        console.print(_table(title, settings), "")
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


def _folder_info(folder: Folder) -> None:
    """Show the details of a Hugging Face folder, whose headers have been checked."""
    from headway.models.gpt import flat, shapes  # late: `headway --help` is fast

    console = Console(highlight=False, soft_wrap=True)
    sizes = [prod(shape) for shape in shapes(folder.config).values()]
    files = sum(file.stat().st_size for file in folder.files)
    tokenizer = folder.path / "tokenizer.json"
    tokens = f"{folder.tokenizer.vocabulary:,} tokens" if tokenizer.is_file() else "none"
    console.print(
        f"[bold]{folder.path}[/]: {folder.family.architecture}, {sum(sizes):,} parameters in "
        f"{len(folder.files)} file{'s' * (len(folder.files) != 1)} of {files / 1e6:,.1f} MB; "
        f"tokenizer: {tokens}\n"
    )
    console.print(_table("model", flat(folder.config)))


def _table(title: str, settings: Mapping[str, Any]) -> Table:
    table = Table(title, "", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name, value in settings.items():
        table.add_row(name, str(value)[:40])
    return table


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
