"""`headway climb` and `headway compare`: what an idea buys."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live

from headway.cli.progress import interrupts
from headway.extras import require

if TYPE_CHECKING:
    from headway.lab.experiments import Experiment

_SWITCH = Parameter(negative=())
_LAB = Path("lab")


def climb(
    text: str = "manual",
    /,
    *,
    quick: Annotated[bool, _SWITCH] = False,
    full: Annotated[bool, _SWITCH] = False,
    engine: Literal["torch", "jax"] = "torch",
    lab: Path = _LAB,
) -> None:
    """Train the same small GPT with every rung of the ladder: what does each idea buy?

    Three seeds each with --quick (the default), five and longer with --full. Stopped at any point,
    the same command goes on; runs that are there already are not repeated.

    Parameters
    ----------
    text
        A file, a folder of text files, or manual, shakespeare or verdict.
    quick
        Three seeds: some ten minutes on two cores. The default.
    full
        Five seeds and six times the steps.
    engine
        PyTorch or JAX.
    lab
        The folder of all runs and reports.
    """
    from headway.lab import climb as climbing  # late: `headway --help` answers at once

    size = _size(quick, full)
    experiment = replace(climbing.experiment(text, size), engine=engine)
    _conduct(experiment, lab, ["climb", text, f"--{size}"], climbing.repacked)


def compare(
    *experiments: str,
    text: str | None = None,
    quick: Annotated[bool, _SWITCH] = False,
    full: Annotated[bool, _SWITCH] = False,
    engine: Literal["torch", "jax"] = "torch",
    lab: Path = _LAB,
) -> None:
    """Train variants of one small GPT beside each other, with several seeds.

    A ready experiment (scale, heads, width-of-head, dropout, normalizer, position, context,
    kv-heads), a .toml of your own with a question and variants, or two recipes or more.

    Parameters
    ----------
    experiments
        One experiment, or the .toml files of two recipes or more.
    text
        Instead of the experiment's own.
    quick
        Three seeds; our own experiments then take some ten minutes on two cores. The default.
    full
        Five seeds, and our own experiments longer.
    engine
        PyTorch or JAX.
    lab
        The folder of all runs and reports.
    """
    from headway.lab import experiments as known  # late: `headway --help` answers at once

    size = _size(quick, full)
    if not experiments:
        raise ValueError(f"name an experiment: {', '.join(known.names())}; or recipes, as .toml")
    if len(experiments) > 1 and not all(each.endswith(".toml") for each in experiments):
        raise ValueError("one experiment at a time; or the .toml files of two recipes or more")
    if len(experiments) == 1 and known.is_experiment(experiments[0]):
        experiment = known.read(experiments[0], size)
    else:
        experiment = known.of_recipes(experiments, size)
    if text is not None:
        experiment = experiment.with_text(text)
    words = [*experiments, *([] if text is None else ["--text", text])]
    _conduct(replace(experiment, engine=engine), lab, ["compare", *words, f"--{size}"])


def _size(quick: bool, full: bool) -> str:
    if quick and full:
        raise ValueError("--quick or --full, not both")
    return "full" if full else "quick"


def _conduct(
    experiment: Experiment,
    lab: Path,
    words: Sequence[str],
    remarks: Callable[[Experiment, Path], Iterable[str]] = lambda experiment, runs: (),
) -> None:
    """Do what is missing of the runs, show them on the way, and write the report."""
    require("lab", "the lab")
    from headway.lab import files, report, work
    from headway.lab.report import Report

    # Where nobody looks, all columns are written.
    wide = None if sys.stdout.isatty() else 200
    console = Console(highlight=False, markup=False, width=wide)
    chosen = [] if experiment.engine == "torch" else ["--engine", experiment.engine]
    elsewhere = [] if lab == _LAB else ["--lab", str(lab)]
    command = shlex.join(["headway", *words, *chosen, *elsewhere])
    runs = lab / files.RUNS
    there = sum(work.is_done(runs / job.folder) for job in experiment.jobs)
    console.print(
        f"{experiment.question}\n{len(experiment.jobs)} runs, {there} of them done already"
    )
    with interrupts() as stopped, _live(console, experiment, runs) as show:
        wrong = work.run(experiment, runs, stopped=stopped, show=show)
    found = report.gather(experiment, runs, wrong)
    said = [] if stopped() else [*remarks(experiment, runs)]
    whole = Report(experiment, found, command, said)
    place = files.write(whole, lab)
    console.print(report.terminal(whole, console.width))
    for answer in report.answers(whole):
        console.print(f"- {answer}")
    console.print(f"the report: {place / 'index.html'}", soft_wrap=True)
    if stopped():
        console.print(f"stopped; the same command goes on: {command}", soft_wrap=True)
        sys.exit(130)
    if any(run.failed for run in found):
        sys.exit(1)


@contextmanager
def _live(console: Console, experiment: Experiment, runs: Path) -> Iterator[Callable[[], None]]:
    """`show()` draws how far all runs are; without a terminal, a line for each that has ended."""
    from headway.lab import report
    from headway.lab.report import Report

    ended = {run.job.folder for run in report.gather(experiment, runs) if run.result}
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show() -> None:
            found = report.gather(experiment, runs)
            if console.is_terminal:
                so_far = report.terminal(Report(experiment, found, ""), console.width)
                live.update(so_far, refresh=True)
                return
            for run in found:
                if run.result and run.job.folder not in ended:
                    ended.add(run.job.folder)
                    console.print(f"{run.job.variant}, seed {run.job.seed}: {run.loss:.3f}")

        yield show
