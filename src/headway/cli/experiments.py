"""Functions that `headway climb`, `compare` and `translate race` share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from headway.lab.comparison import TrainedRun

LAB = Path("lab")


def size_of(quick: bool, full: bool) -> str:
    """Return quick or full. Raises ValueError if both are requested."""
    if quick and full:
        raise ValueError("--quick and --full exclude each other; remove one")
    return "full" if full else "quick"


def command_of(words: Sequence[str], lab: Path) -> str:
    """Return the command that repeats an experiment. words: without the folder of the lab."""
    return shlex.join(["headway", *words, *([] if lab == LAB else ["--lab", str(lab)])])


def finish(
    console: Console,
    answers: Iterable[str],
    folder: Path,
    command: str,
    runs: Sequence[TrainedRun],
    stopped: bool,
) -> None:
    """Print the results of an experiment; exit with 130 if it was stopped, 1 if a run failed."""
    for answer in answers:
        console.print(f"- {answer}", markup=False)
    console.print(f"report: {folder / 'index.html'}", soft_wrap=True)
    if stopped:
        console.print(f"stopped; continue with: {command}", soft_wrap=True)
        sys.exit(130)
    if any(run.failed for run in runs):
        sys.exit(1)
