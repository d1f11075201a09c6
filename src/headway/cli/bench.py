"""`headway bench`: compare implementations of attention."""

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

from headway.cli.parameters import Switch
from headway.cli.progress import interrupts
from headway.extras import require

if TYPE_CHECKING:
    from headway.bench.compare import Table
    from headway.bench.custom import CustomAttention
    from headway.bench.results import Results
    from headway.bench.settings import Setting

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
    forward: Switch = False,
    compiled: Switch = False,
    window: int | None = None,
    dropout: float | None = None,
    projections: Switch = False,
    causal: bool = True,
    kernels: str | None = None,
    module: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    device: Literal["cpu", "cuda"] | None = None,
    threads: int | None = None,
    seconds: float = 2.0,
    output: Path | None = None,
    tune: Switch = False,
) -> None:
    """Compare implementations of attention: time, memory, error, and the kernel that ran.

    By default this measures the shape of the book (batch 8, 1,024 tokens, width 768, 12 heads),
    five variants of it with batch 1, and a sweep of lengths. If an option of the shape is given, it
    measures only that setting, or a sweep of its lengths. Wrong results are not ranked. Ctrl-C
    stops; all finished tables are written.

    Parameters
    ----------
    batch
        Batch size; by default 8.
    tokens
        Number of tokens; by default 1024. Several, separated by commas, make a sweep.
    width
        Features of a token; by default 768, or those of the module.
    heads
        Number of heads; by default 12.
    kv_heads
        Number of heads of keys and values; by default that of queries.
    dtype
        Data type; by default float32.
    forward
        Measure the forward pass only.
    compiled
        Use torch.compile.
    window
        A query attends to this many keys, including its own position.
    dropout
        Dropout rate of the attention weights.
    projections
        Include the projections: the complete layer.
    causal
        Use a causal mask.
    kernels
        Measure only these kernels, separated by commas, and plain, with which they are compared.
    module
        A custom implementation: package.module:Name or file.py:Name, a function of queries, keys
        and values (batch, heads, tokens, dim), or a function or module of x. Its code is run.
    settings
        name=value: an argument of its class or function; may be repeated.
    device
        Device; by default the fastest.
    threads
        Number of threads; by default PyTorch's choice.
    seconds
        Time to measure each row of a table; longer times reduce noise.
    output
        Folder for the results; by default a new one in bench/.
    tune
        Instead, measure all kernels on many small shapes, so that `attend` chooses the fastest on
        this machine, and report how well it chooses.
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
    if not seconds > 0:
        raise ValueError(f"--seconds must be > 0 (got {seconds:g})")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be >= 1 (got {threads})")
    if settings and module is None:
        raise ValueError("--set needs --module")
    # Warnings would disturb the table.
    with _true_compile_times(), warnings.catch_warnings(action="ignore"):
        from headway.attention.kernels.table import kernel_named  # late: `headway --help` is fast
        from headway.bench import measure
        from headway.bench import output as output_files
        from headway.bench.custom import CustomAttention

        chosen = _device(device)
        if tune:
            if shape or kernels or module:
                raise ValueError("--tune accepts only --device, --threads and --output")
            _tune(chosen, output)
            return
        custom = None if module is None else CustomAttention.load(module, settings or [])
        require("plots", "the bench")
        plan = _plan(shape, chosen, custom)
        named = None if kernels is None else [name.strip() for name in kernels.split(",")]
        for name in named or ():
            kernel_named(name)  # raises ValueError
        folder = output_files.free_folder(output)
        measure.settle(threads)
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        report, stopped = _measure(plan, named, custom, seconds, console, folder, fixed=bool(shape))
        output_files.write(report, folder)
    written = ", ".join(sorted(file.name for file in folder.iterdir()))
    console.print(
        f"{'stopped; the results so far are in' if stopped else 'in'} {folder}: {written}"
    )
    if stopped:
        sys.exit(130)


def _measure(
    plan: Sequence[Setting],
    kernels: Sequence[str] | None,
    custom: CustomAttention | None,
    seconds: float,
    console: Console,
    folder: Path,
    fixed: bool,
) -> tuple[Results, bool]:
    """Measure, show and write all tables; also return whether Ctrl-C stopped it.

    fixed: the user chose the settings, so batches are not made smaller.
    """
    import torch

    from headway.bench import measure
    from headway.bench import output as output_files
    from headway.bench.compare import Bench
    from headway.bench.machine import machine
    from headway.bench.results import LEGEND, Results

    device = plan[0].device
    report = Results(machine(device), seconds, measure.bandwidth(device))

    def peak(dtype: str) -> float:
        """Measure again and return the best result so far: other processes may slow one down."""
        for kind in dict.fromkeys(("float32", dtype)):
            best = max(report.peaks.get(name, 0.0) for name in ("float32", kind))
            report.peaks[kind] = max(measure.peak_flops(getattr(torch, kind), device), best)
        return report.peaks[dtype]

    peak(plan[0].dtype)
    console.print(f"[dim]{report.described}\n{LEGEND}[/]\n")
    with _live(console, report) as (show, done), interrupts() as stopped:
        if custom is not None:
            console.print(f"[dim]checking {custom.name}[/]\n")
        candidates = [] if custom is None else [custom.candidate(plan[0])]
        bench = Bench(seconds, peak, kernels, candidates, stopped, show)
        for planned in plan:
            if stopped():
                break
            setting = planned if fixed else bench.affordable(planned)
            table = bench.compare(setting, _shorter(setting, report.tables))
            if setting != planned:
                table.note = f"with batch {planned.batch} plain would take too long (--seconds)"
            report.tables.append(table)
            done(table)
            output_files.write_json(report.as_dict(), folder / "bench.json")
        return report, stopped()


def _tune(device: str, output: Path | None) -> None:
    """Measure and save the kernel table, and report how well `attend` chooses with it."""
    from headway.attention.kernels import tuning
    from headway.bench import output as output_files
    from headway.bench import tune
    from headway.bench.machine import machine

    file, folder = tuning.path(), output_files.free_folder(output)
    console = Console(highlight=False, soft_wrap=True)
    with interrupts() as stopped:
        questions = tune.questions(tune.SIZES)
        tables = [*_counted("measuring", tune.tune(device, stopped), questions, console)]
        if stopped():  # an incomplete table would choose worse than the rules
            console.print("stopped; the table has not changed")
            sys.exit(130)
        tuning.save({**tuning.table(), **tables[-1]}, file)
        tuning.forget()
        console.print(f"{file}: {len(tables)} calls measured")
        questions = tune.questions(tune.UNSEEN)
        verdicts = [*_counted("evaluating", tune.judge(device, stopped), questions, console)]
        if stopped():
            console.print("stopped before the end of the report; the new table is in use")
            sys.exit(130)
    report = tune.report(machine(device), verdicts)
    output_files.write_json(report, folder / "tune.json")
    console.print(tune.summary(report))
    console.print(f"in {folder}: tune.json")


def _counted(
    doing: str, items: Iterator[Any], expected: Sequence[object], console: Console
) -> Iterator[Any]:
    """Yield the items, with a progress bar on a terminal."""
    hidden = not console.is_terminal
    with Progress(*_COUNTED, console=console, disable=hidden, transient=True) as bar:
        yield from bar.track(items, total=len(expected), description=doing)


def _shorter(setting: Setting, tables: Sequence[Table]) -> Table | None:
    """Return the last table of the same setting with fewer tokens."""
    for table in reversed(tables):
        same = replace(table.setting, tokens=setting.tokens) == setting
        if same and table.setting.tokens < setting.tokens:
            return table
    return None


def _plan(shape: dict[str, Any], device: str, custom: CustomAttention | None) -> list[Setting]:
    """Return the requested settings; by default those of `settings.plan` or of the module."""
    from headway.bench import settings

    of_x = custom is not None and custom.of_x
    if not shape and not of_x:
        return [*settings.plan(device)]
    width = shape.pop("width", None) or (custom and custom.width) or settings.Setting().width
    heads = shape.pop("heads", None) or next(h for h in range(12, 0, -1) if width % h == 0)
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide the width (got {heads} and {width})")
    tokens = shape.pop("tokens", None)
    setting = settings.Setting(
        **{"kv_heads": heads, "projections": of_x, **shape},
        heads=heads,
        head_dim=width // heads,
        device=device,
    )
    if tokens is not None:
        return [*settings.lengths(setting, _numbers(tokens))]
    return [setting] if shape else [replace(setting, backward=False), setting]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise ValueError(
            f"--tokens must be numbers, for example 64,256,1024 (got {text!r})"
        ) from None


def _device(device: str | None) -> str:
    import torch

    from headway.torch import devices

    return devices.choose(device or ("cuda" if torch.cuda.is_available() else "cpu")).type


Show = Callable[["Table", str], None]
Done = Callable[["Table"], None]


@contextmanager
def _live(console: Console, report: Results) -> Iterator[tuple[Show, Done]]:
    """Yield `show(table, doing)`, for a table in progress, and `done(table)`.

    The terminal is updated only at these calls, between measurements. Without a terminal, only
    finished tables are printed.
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
    """Set environment variables for measuring; PyTorch and JAX read them when they are imported.

    Programs compiled by earlier runs are not reused, the profiler prints nothing, and JAX does not
    reserve the memory of the GPU.
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
