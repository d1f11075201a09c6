"""`headway`: the commands, and how they report errors."""

import os
import sys
import time
import warnings
from importlib import metadata

from cyclopts import App, CycloptsError
from rich.console import Console

from headway.cli.bench import bench
from headway.cli.diff import diff
from headway.cli.eval import evaluate
from headway.cli.explore import explore
from headway.cli.export import export
from headway.cli.generate import generate
from headway.cli.lab import climb, compare
from headway.cli.ladder import ladder
from headway.cli.learn import learn
from headway.cli.processes import end_with_parent, is_first, is_one_of_several, reports
from headway.cli.runs import info, runs
from headway.cli.trace import trace
from headway.training.memory import is_exhausted
from headway.training.processes import is_lost

app = App(
    name="headway",
    help="Attention, from one dot product to a GPT that you trained.",
    version=lambda: metadata.version("headway"),
    help_epilogue="Start with:  headway ladder  |  headway train  |  headway generate RUN 'Once'",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
# These commands are imported only when they run, because they need the dataclasses whose fields
# are their options.
_FOR_TORCHRUN = 10  # seconds
LAZY = {
    "train": "Train a small GPT on a text and write it to a run directory.",
    "plan": "Plan a training run: memory, time, and what limits it, before it is started.",
    "check": "Check an attention implementation: leaks, reversed masks, a wrong softmax axis.",
    "translate": "Train, use, measure and compare models that translate.",
}
for command in (ladder, learn, generate, explore, trace, diff, bench, climb, compare, runs, info):
    app.command(command)
app.command(export)
app.command(evaluate, name="eval")
for name, description in LAZY.items():
    app.command(f"headway.cli.{name}:{name}", name=name, help=description)


def main() -> None:
    """Run the command line. An error is one line on stderr and a non-zero exit status."""
    # Libgomp reads this when PyTorch is imported: how long the threads wait for each other without
    # giving their core to another process. Measured with char-cpu on two cores: by default a step
    # takes 33 ms, but 8 s next to one busy process; with this, 36 ms and 0.2 s.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    warnings.showwarning = _show  # type: ignore[assignment]
    if is_one_of_several():
        end_with_parent()
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    try:
        app(sys.argv[1:])
    except CycloptsError as error:
        _stop(str(error), code=2)
    except OSError as error:
        _stop_if_lost(error)
        where = f"{error.filename}: {error.strerror}; check the path, permissions and disk space"
        _stop(where if error.filename else str(error), code=1)
    except ValueError as error:
        _stop_if_lost(error)
        _stop(str(error), code=1)
    except (RuntimeError, MemoryError) as error:
        _stop_if_lost(error)
        if not is_exhausted(error):
            raise
        advice = "a smaller model, fewer or shorter texts or a shorter number format need less"
        _stop(f"out of memory; {advice} ({str(error).partition(chr(10))[0]})", code=1)
    except KeyboardInterrupt:
        _stop("stopped", code=130)


def _show(message: Warning | str, *_: object) -> None:
    """Print a warning as one line, without the line of code that gave it."""
    if is_first():
        print(f"headway: {' '.join(str(message).split())}", file=sys.stderr)


def _stop_if_lost(error: Exception) -> None:
    """Stop if the error comes from another process that has ended or does not answer.

    torchrun, which knows that process, stops this one before it reports; where there is no
    torchrun, it reports.
    """
    if is_one_of_several() and is_lost(error):
        time.sleep(_FOR_TORCHRUN)
        reason = str(error).strip().partition("\n")[0]
        _stop(
            f"another process has ended or does not answer ({reason}); "
            "the run continues from its last checkpoint with --resume",
            code=1,
        )


def _stop(message: str, code: int) -> None:
    line = " ".join(message.split())
    if reports():
        Console(stderr=True, soft_wrap=True).print(f"headway: {line}", style="red", markup=False)
    if is_one_of_several():  # without waiting for the connections to the other processes
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
