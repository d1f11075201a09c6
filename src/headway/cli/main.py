"""`headway`: the verbs, and how all of them say what went wrong."""

from __future__ import annotations

import sys
from importlib import metadata

from cyclopts import App, CycloptsError
from rich.console import Console

from headway.cli.bench import bench
from headway.cli.check import check
from headway.cli.explore import explore
from headway.cli.generate import generate
from headway.cli.lab import climb, compare
from headway.cli.ladder import ladder
from headway.cli.runs import info, runs
from headway.cli.trace import trace

app = App(
    name="headway",
    help="Attention, from one dot product to a GPT that you trained.",
    version=lambda: metadata.version("headway"),
    help_epilogue="Start with:  headway ladder  |  headway train  |  headway generate RUN 'Once'",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
app.command(ladder)
# By name, because their options come from the configs: `headway --help` does not import them.
app.command(
    "headway.cli.train:train",
    name="train",
    help="Train a small GPT on a text, and keep it in a run directory.",
)
for command in (generate, explore, trace, check, bench, climb, compare, runs, info):
    app.command(command)
app.command(
    "headway.cli.translate:translate",
    name="translate",
    help="Train, use, measure and compare models that translate.",
)


def main() -> None:
    """Run the command line. Bad input is one line on the error stream and a non-zero exit."""
    try:
        app()
    except CycloptsError as error:
        _stop(str(error), code=2)
    except OSError as error:
        where = f"{error.filename}: {error.strerror}; is there space, and may you write there?"
        _stop(where if error.filename else str(error), code=1)
    except ValueError as error:
        _stop(str(error), code=1)
    except KeyboardInterrupt:
        _stop("stopped", code=130)


def _stop(message: str, code: int) -> None:
    line = " ".join(message.split())
    Console(stderr=True, soft_wrap=True).print(f"headway: {line}", style="red", markup=False)
    sys.exit(code)
