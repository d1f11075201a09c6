"""`headway climb` and `headway compare`: measure the effect of an idea by training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live

from headway.cli.experiments import LAB, command_of, finish, size_of
from headway.cli.parameters import Engine, Switch
from headway.cli.progress import interrupts
from headway.extras import require

if TYPE_CHECKING:
    from headway.lab.experiments import Experiment


def climb(
    text: str = "manual",
    /,
    *,
    quick: Switch = False,
    full: Switch = False,
    replicate: Switch = False,
    engine: Engine = "torch",
    lab: Path = LAB,
) -> None:
    """Train the same small GPT with every rung of the ladder, and compare the rungs.

    Three seeds each with --quick (the default) show tendencies; five seeds and longer runs with
    --full allow claims. The same command continues after an interruption; finished runs are not
    repeated.

    Parameters
    ----------
    text
        A file, a folder of text files, or manual, shakespeare or verdict.
    quick
        Three seeds: about ten minutes on two cores. The default.
    full
        Five seeds and six times the steps.
    replicate
        Train as many other seeds, and say for each claim whether they confirm it.
    lab
        Folder of all runs and comparisons.
    """
    from headway.lab import climb as climbing  # late: `headway --help` is fast

    size = size_of(quick, full)
    experiment = replace(climbing.experiment(text, size), engine=engine)
    _conduct(experiment, lab, ["climb", text, f"--{size}"], replicate, climbing.repacked)


def compare(
    *experiments: str,
    assignments: Annotated[list[str] | None, Parameter(name="--set")] = None,
    recipe: str | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    text: str | None = None,
    quick: Switch = False,
    full: Switch = False,
    replicate: Switch = False,
    engine: Engine = "torch",
    lab: Path = LAB,
) -> None:
    """Train variants of one small GPT and compare them, with several seeds.

    The variants come from a ready experiment (scale, heads, width-of-head, dropout, normalizer,
    position, context, kv-heads), from a .toml with a question and variants, from two or more
    recipes, or from --set.

    Parameters
    ----------
    experiments
        One experiment, or the .toml files of two or more recipes.
    assignments
        Values of a setting to compare, such as heads=2,4; several give all combinations.
    recipe
        Recipe for the settings that --set does not change; by default the lab's recipe.
    seeds
        Number of seeds; by default three, or five with --full. Fewer than five show tendencies.
    steps
        Number of steps; by default the experiment's.
    text
        Text to use instead of the experiment's.
    quick
        Three seeds: a ready experiment takes about ten minutes on two cores. The default.
    full
        Five seeds, and longer runs in the ready experiments.
    replicate
        Train as many other seeds, and say for each claim whether they confirm it.
    lab
        Folder of all runs and comparisons.
    """
    from headway.lab import experiments as known  # late: `headway --help` is fast

    size = size_of(quick, full)
    if bool(experiments) == bool(assignments):
        names = ", ".join(known.names())
        raise ValueError(f"give one experiment ({names}), recipes as .toml, or --set NAME=VALUES")
    if recipe is not None and not assignments:
        raise ValueError("--recipe needs --set")
    if len(experiments) > 1 and not all(name.endswith(".toml") for name in experiments):
        raise ValueError("give one experiment, or the .toml files of two or more recipes")
    if assignments:
        experiment = known.of_values(assignments, recipe or known.RECIPE, size)
    elif len(experiments) == 1 and known.is_experiment(experiments[0]):
        experiment = known.read(experiments[0], size)
    else:
        experiment = known.of_recipes(experiments, size)
    if text is not None:
        experiment = experiment.with_text(text)
    experiment = experiment.with_budget(seeds, steps)
    words = ["compare", *experiments]
    for assignment in assignments or ():
        words += ["--set", assignment]
    options = {"recipe": recipe, "seeds": seeds, "steps": steps, "text": text}
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    _conduct(replace(experiment, engine=engine), lab, [*words, f"--{size}"], replicate)


def _conduct(
    experiment: Experiment,
    lab: Path,
    words: Sequence[str],
    replicate: bool,
    remarks: Callable[[Experiment, Path], Iterable[str]] = lambda experiment, runs: (),
) -> None:
    """Train the runs that are missing, show their progress, and write the report."""
    require("lab", "the lab")
    from headway.lab import comparison as comparisons
    from headway.lab import page, work
    from headway.lab.effects import ENOUGH

    if replicate and experiment.seeds < ENOUGH:
        raise ValueError(
            f"--replicate needs at least {ENOUGH} seeds, as with --full (got {experiment.seeds})"
        )
    everything = experiment.with_budget(experiment.seeds * (1 + replicate), None)
    width = None if sys.stdout.isatty() else 200  # a file gets all columns
    console = Console(highlight=False, markup=False, width=width)
    words = [*words, *(["--replicate"] if replicate else [])]
    words += [] if experiment.engine == "torch" else ["--engine", experiment.engine]
    command = command_of(words, lab)
    runs = lab / work.RUNS
    finished = sum(work.is_done(runs / job.folder) for job in everything.jobs)
    console.print(
        f"{experiment.question}\n{len(everything.jobs)} runs, {finished} of them finished"
    )
    with interrupts() as stopped, _live(console, everything, runs) as show:
        errors = work.run(everything.jobs, runs, stopped=stopped, show=show)
    trained = comparisons.gather(everything.jobs, runs, errors)
    further = [] if stopped() else [*remarks(experiment, runs)]
    comparison = comparisons.of(experiment, trained, command, further)
    folder = page.write(comparison, lab)
    console.print(comparisons.terminal(comparison, console.width))
    finish(console, comparisons.answers(comparison), folder, command, trained, stopped())


@contextmanager
def _live(console: Console, experiment: Experiment, runs: Path) -> Iterator[Callable[[], None]]:
    """Yield `show()`, which draws the progress of all runs.

    Without a terminal it prints one line per finished run instead.
    """
    from headway.lab.comparison import Comparison, gather, terminal

    ended = {run.job.folder for run in gather(experiment.jobs, runs) if run.result}
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show() -> None:
            trained = gather(experiment.jobs, runs)
            if console.is_terminal:
                table = terminal(Comparison(experiment, trained, ""), console.width)
                live.update(table, refresh=True)
                return
            for run in trained:
                if run.result and run.job.folder not in ended:
                    ended.add(run.job.folder)
                    console.print(f"{run.job.variant}, seed {run.job.seed}: {run.loss:.3f}")

        yield show
