"""The report of a comparison as a table in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from headway.divergence.report import Report, Step

SYMBOLS = {"same": "", "different": "differs", "not found": "not found"}


def show(report: Report, console: Console) -> None:
    """Print the table of steps, the causes, and the result."""
    one, two = report.titles
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("step", "difference", "rounding explains", ""):
        table.add_column(title, justify="right" if title.startswith(("d", "r")) else "left")
    causes = {cause.name for cause in report.causes}
    for step in report.steps:
        table.add_row(*_cells(step, causes), style="bold red" if step.name in causes else "")
    console.print(f"{one} and {two}, in {report.dtype}; differences are relative", style="dim")
    console.print(table)
    console.print()
    for number, cause in enumerate(report.causes):
        title = "first wrong step" if number == 0 else "then"
        layers = ", and the same in every layer" if cause.in_all_layers else ""
        console.print(f"{title}: [bold]{cause.name}[/]{layers}", highlight=False)
        if cause.place:
            console.print(f"  computed by {cause.place}", markup=False, highlight=False)
        if cause.looks:
            console.print(f"  {cause.looks}", markup=False, highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(conclusion(report), style="green" if report.is_same else "bold", markup=False)


def conclusion(report: Report) -> str:
    """Say in one sentence whether the models are the same, and whether the cause is proved."""
    one, two = report.titles
    what = "logits"
    if any(step.name.startswith("gradients.") for step in report.steps):
        what = "logits, loss and gradients"
    if report.is_same:
        return f"{two} computes the same {what} as {one}, up to rounding."
    if what != "logits":
        return _of_training(report)
    which = "this step" if len(report.causes) == 1 else "these steps"
    if report.causes and not report.causes[-1].is_replaced:
        name = report.causes[-1].name
        return f"{name} could not be replaced, so the comparison ends there, without a proof."
    if not report.causes and report.steps[-1].state != "different":
        return "The logits were not compared."
    if report.causes and report.is_proved:
        return f"With {which} of {one} in it, {two} computes the same logits: the cause is proved."
    if report.causes:
        return f"With {which} of {one} in it, {two} still computes other logits."
    return f"The logits differ, and no step of {one} was found in {two} that explains it."


def _of_training(report: Report) -> str:
    """The conclusion, where the logits agree and the training differs."""
    one, two = report.titles
    if report.first == "loss" and report.is_proved:
        return f"With the loss of {one}, the gradients of {two} agree: the cause is proved."
    if (report.first or "").startswith("updates."):
        return f"The gradients agree; the optimizer of {two} makes other updates of them."
    return "The logits agree, and so do the gradients that are nearer to the loss."


def _cells(step: Step, causes: set[str]) -> tuple[str, str, str, str]:
    error = "" if step.difference is None else f"{step.difference:.1e}"
    verdict = "first" if step.name in causes else SYMBOLS[step.state]
    return step.name, error, f"{step.limit:.1e}", "wrong" if verdict == "first" else verdict
