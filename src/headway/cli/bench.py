"""`headway bench`: ways to run attention, measured beside each other."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from headway.cli.progress import interrupts
from headway.extras import require

if TYPE_CHECKING:
    from headway.bench.compare import Table
    from headway.bench.custom import Yours
    from headway.bench.results import Results
    from headway.bench.settings import Setting

_SWITCH = Parameter(negative=())
_COUNTED = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)


def bench(
    *,
    batch: int | None = None,
    tokens: str | None = None,
    width: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    forward: Annotated[bool, _SWITCH] = False,
    compiled: Annotated[bool, _SWITCH] = False,
    window: int | None = None,
    dropout: float | None = None,
    projections: Annotated[bool, _SWITCH] = False,
    causal: bool = True,
    kernels: str | None = None,
    module: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    device: Literal["cpu", "cuda"] | None = None,
    threads: int | None = None,
    seconds: float = 2.0,
    output: Path | None = None,
    tune: Annotated[bool, _SWITCH] = False,
) -> None:
    """Compare every way to run attention: time, memory, error, and what really ran.

    By itself: the book's shape (batch 8, 1,024 tokens, width 768, 12 heads), one text of it in five
    more settings, then a sweep of lengths. Any option of the shape gives that setting alone, or a
    sweep of several lengths. What is wrong is not ranked. Ctrl-C ends it, and what was measured is
    written.

    Parameters
    ----------
    batch
        8 by default.
    tokens
        1024 by default; several with commas are a sweep.
    width
        Features of a token, of all heads together: 768 by default, or your module's.
    heads
        12 by default.
    kv_heads
        Fewer heads of keys and values.
    dtype
        float32 by default.
    forward
        Without the backward pass.
    compiled
        With torch.compile.
    window
        A query sees that many keys, itself included.
    dropout
        The share of the weights that is dropped.
    projections
        With the projections before and after: the whole layer.
    causal
        No query sees a later key.
    kernels
        These only, with commas; plain is always there, for the others are measured against it.
    module
        Your own beside them: package.module:Name or file.py:Name, a function of queries, keys and
        values (batch, heads, tokens, dim), or a function or module of x. Runs that code.
    settings
        name=value for its class, or for the function; again for each.
    device
        By default the best that there is.
    threads
        By default PyTorch's own choice.
    seconds
        What a row may take for its rounds; more of it is less noise.
    output
        The folder to write to; by default a new one in bench/.
    tune
        Instead: time every kernel on many small shapes, for `attend` to choose by on this machine,
        and tell how well it then chooses.
    """
    shape = {
        "batch": batch,
        "tokens": tokens,
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "dtype": dtype,
        "backward": False if forward else None,
        "compiled": compiled or None,
        "window": window,
        "dropout": dropout,
        "projections": projections or None,
        "causal": None if causal else False,
    }
    shape = {name: value for name, value in shape.items() if value is not None}
    if not seconds > 0 or (threads is not None and threads < 1):
        raise ValueError("a row takes more than 0 seconds, and 1 thread or more")
    if settings and module is None:
        raise ValueError("--set is for the module that --module names")
    with _true_compile_times(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would stand in the table
        from headway.bench import measure  # late: `headway --help` is fast
        from headway.bench import output as output_files
        from headway.bench.custom import Yours

        place = _place(device)
        if tune:
            if shape or kernels or module:
                raise ValueError(
                    "--tune has its own shapes: it takes --device, --threads, --output"
                )
            _tune(place, output)
            return
        yours = None if module is None else Yours.load(module, settings or [])
        require("plots", "the bench")
        plan = _plan(shape, place, yours)
        named = None if kernels is None else _kernels(kernels)
        folder = output_files.free_folder(output)
        measure.settle(threads)
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        report, stopped = _measure(plan, named, yours, seconds, console, folder, fixed=bool(shape))
        output_files.write(report, folder)
    written = ", ".join(sorted(file.name for file in folder.iterdir()))
    console.print(f"{'stopped; what was measured is in' if stopped else 'in'} {folder}: {written}")
    if stopped:
        sys.exit(130)


def _measure(
    plan: Sequence[Setting],
    kernels: Sequence[str] | None,
    yours: Yours | None,
    seconds: float,
    console: Console,
    folder: Path,
    fixed: bool,
) -> tuple[Results, bool]:
    """All tables, shown and written as they are made; and whether Ctrl-C cut them short.

    fixed: the settings are what somebody asked for, and no batch is made smaller.
    """
    import torch

    from headway.bench import measure
    from headway.bench import output as output_files
    from headway.bench.compare import Bench
    from headway.bench.machine import machine
    from headway.bench.results import LEGEND, Results

    place = plan[0].device
    report = Results(machine(place), seconds, measure.bandwidth(place))

    def peak(dtype: str) -> float:
        """The best so far: other processes may have slowed an earlier measurement."""
        for each in dict.fromkeys(("float32", dtype)):
            best = max(report.peaks.get(name, 0.0) for name in ("float32", each))
            report.peaks[each] = max(measure.peak_flops(getattr(torch, each), place), best)
        return report.peaks[dtype]

    peak(plan[0].dtype)
    console.print(f"[dim]{report.described}\n{LEGEND}[/]\n")
    with _live(console, report) as (show, done), interrupts() as stopped:
        if yours is not None:
            console.print(f"[dim]the doctor looks at {yours.name}[/]\n")
        own = [] if yours is None else [yours.candidate(plan[0])]
        bench = Bench(seconds, peak, kernels, own, stopped, show)
        for wanted in plan:
            if stopped():
                break
            setting = wanted if fixed else bench.affordable(wanted)
            table = bench.compare(setting, _shorter(setting, report.tables))
            if setting != wanted:
                table.note = (
                    f"a run of plain at batch {wanted.batch} would take too long (--seconds)"
                )
            report.tables.append(table)
            done(table)
            output_files.write_json(report.as_dict(), folder / "bench.json")
        return report, stopped()


def _tune(place: str, output: Path | None) -> None:
    """Make this machine's table, and write how well `attend` chooses by it."""
    from headway.attention.kernels import tuning
    from headway.bench import output as output_files
    from headway.bench import tune
    from headway.bench.machine import machine

    file, folder = tuning.path(), output_files.free_folder(output)
    console = Console(highlight=False, soft_wrap=True)
    with interrupts() as stopped:
        asked = tune.questions(tune.SIZES)
        tables = [*_counted("measuring", tune.tune(place, stopped), asked, console)]
        if stopped():  # half a table would choose worse than the rules
            console.print("stopped: the table is what it was before")
            sys.exit(130)
        tuning.save({**tuning.table(), **tables[-1]}, file)
        tuning.forget()
        console.print(f"{file}: {len(tables)} calls measured")
        asked = tune.questions(tune.UNSEEN)
        verdicts = [*_counted("judging", tune.judge(place, stopped), asked, console)]
        if stopped():
            console.print("stopped: how well it chooses was not measured to the end")
            sys.exit(130)
    found = tune.report(machine(place), verdicts)
    output_files.write_json(found, folder / "tune.json")
    console.print(tune.summary(found))
    console.print(f"in {folder}: tune.json")


def _counted(
    doing: str, found: Iterator[Any], expected: Sequence[object], console: Console
) -> Iterator[Any]:
    """The same, with a bar where the output is a terminal."""
    hidden = not console.is_terminal
    with Progress(*_COUNTED, console=console, disable=hidden, transient=True) as bar:
        yield from bar.track(found, total=len(expected), description=doing)


def _shorter(setting: Setting, tables: Sequence[Table]) -> Table | None:
    """The last table of the same setting with fewer tokens."""
    found = [
        table
        for table in tables
        if replace(table.setting, tokens=setting.tokens) == setting
        and table.setting.tokens < setting.tokens
    ]
    return found[-1] if found else None


def _plan(shape: dict[str, Any], place: str, yours: Yours | None) -> list[Setting]:
    """The settings that were asked for; by default the bench's own plan, or what fits a module."""
    from headway.bench import settings

    of_x = yours is not None and yours.of_x
    if not shape and not of_x:
        return [*settings.plan(place)]
    width = shape.pop("width", None) or (yours and yours.width) or settings.Setting().width
    heads = shape.pop("heads", None) or next(h for h in range(12, 0, -1) if width % h == 0)
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}")
    tokens = shape.pop("tokens", None)
    setting = settings.Setting(
        **{"kv_heads": heads, "projections": of_x, **shape},
        heads=heads,
        head_dim=width // heads,
        device=place,
    )
    if tokens is not None:
        return [*settings.lengths(setting, _numbers(tokens))]
    return [setting] if shape else [replace(setting, backward=False), setting]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(each) for each in text.split(",")}))
    except ValueError:
        raise ValueError(f"--tokens takes numbers, such as 64,256,1024: {text!r} is none") from None


def _kernels(text: str) -> list[str]:
    from headway.attention.kernels.table import kernel_named

    names = [name.strip() for name in text.split(",")]
    for name in names:
        kernel_named(name)  # raises ValueError
    return names


def _place(device: str | None) -> str:
    import torch

    from headway.torch import devices

    return devices.choose(device or ("cuda" if torch.cuda.is_available() else "cpu")).type


Show = Callable[["Table", str], None]
Done = Callable[["Table"], None]


@contextmanager
def _live(console: Console, report: Results) -> Iterator[tuple[Show, Done]]:
    """`show(table, doing)` while a table is being made, `done(table)` when it is.

    Nothing is drawn but at these calls, between measurements. Where the output is no terminal only
    what is done is printed.
    """
    from headway.bench.results import terminal

    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(table: Table, doing: str) -> None:
            if console.is_terminal:
                live.update(terminal(report, table, console.width, doing), refresh=True)

        def done(table: Table) -> None:
            live.update(Text(), refresh=True)
            console.print(terminal(report, table, console.width))

        yield show, done


@contextmanager
def _true_compile_times() -> Iterator[None]:
    """What earlier runs compiled is not used again. (And the profiler keeps silent, and JAX leaves
    PyTorch its share of a GPU's memory.)

    All are read when PyTorch and JAX are loaded.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with TemporaryDirectory(prefix="headway-bench-") as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before
