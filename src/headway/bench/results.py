"""The results of `headway bench`: values for JSON, and tables."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from math import floor, log10
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from headway.bench.compare import Row, Table, size
from headway.bench.implementations import JAX, baseline

LITTLE = 1e6  # bytes; less memory cannot be measured


@dataclass
class Results:
    """The machine, its peaks, and the tables.

    seconds: per row, for its rounds. peaks: floating-point operations per second of the fastest
    matrix product in a dtype, or in float32 if that is faster; bandwidth: bytes per second of the
    fastest copy, read and written.
    """

    machine: dict[str, Any]
    seconds: float
    bandwidth: float
    peaks: dict[str, float] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return all values for JSON: times in seconds, memory in bytes, null for unknown values.

        machine, seconds, bandwidth, peaks: as above.
        tables: a list of
            setting: the fields of `Setting`; title: the same in words; flops, bytes: of one call;
            skipped: the reason, or ""; note: a remark, or ""; plain_error: of the plain formula;
            noise_floor: the quartiles of the speed of plain relative to itself;
            left_out: {name: reason}; rows: the fastest first; see `record`.
        """
        return {**vars(self), "tables": [self._table(table) for table in self.tables]}

    def record(self, row: Row, table: Table) -> dict[str, Any]:
        """Return one row, for JSON and for the columns.

        rank: 1 for the fastest, null if not ranked. verdict: "right", "wrong", "failed" (raised an
        error), "skipped" (too large or too slow) or "waiting" (not measured), and the reason. ran:
        the kernel that ran. seconds: of a call, one value per round; median, quartiles: of these;
        spread: half the interquartile range, relative to the median. speed: relative to plain in
        the same round, the median. flops_per_second, bytes_per_second: also relative to the
        machine's peaks. memory: the peak beyond the inputs. error: see `Expected.error`;
        error_of_plain: relative to that of the plain formula. compiling, building_mask: seconds.
        """
        copied = "name verdict reason ran seconds median speed memory error compiling building_mask"
        values = {name: getattr(row, name) for name in copied.split()}
        ranked = row.verdict == "right" and row.seconds
        values["rank"] = table.ranked().index(row) + 1 if ranked else None
        values["quartiles"] = row.quartiles and [*row.quartiles]
        rest = ("spread", "flops_per_second", "of_peak", "bytes_per_second", "of_bandwidth")
        values |= dict.fromkeys((*rest, "error_of_plain"))
        if row.median:
            flops, moved = table.setting.flops / row.median, table.setting.bytes / row.median
            values["flops_per_second"], values["bytes_per_second"] = flops, moved
            values["of_peak"] = flops / self.peaks[table.setting.dtype]
            values["of_bandwidth"] = moved / self.bandwidth
        if row.median and row.quartiles:
            values["spread"] = (row.quartiles[1] - row.quartiles[0]) / 2 / row.median
        if row.error is not None and table.plain_error:
            values["error_of_plain"] = row.error / table.plain_error
        return values

    def _table(self, table: Table) -> dict[str, Any]:
        return {
            "setting": asdict(table.setting),
            "title": str(table.setting),
            "flops": table.setting.flops,
            "bytes": table.setting.bytes,
            "skipped": table.skipped,
            "note": table.note,
            "plain_error": table.plain_error,
            "noise_floor": table.noise_floor and [*table.noise_floor],
            "left_out": table.left_out,
            "rows": [self.record(row, table) for row in table.ranked()],
        }

    @property
    def described(self) -> str:
        """The machine and its peaks in one line."""
        of = self.machine
        parts = [
            f"{of['processor']}, {of['cores']} cores, threads used: {of['threads']}",
            of.get("accelerator", ""),
            size(of["memory"]) if "memory" in of else "",
            *(f"{name} {of[name]}" for name in ("torch", "jax") if name in of),
            *(f"{peak / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, peak in self.peaks.items()),
            f"{self.bandwidth / 1e9:,.0f} GB/s",
        ]
        return ", ".join(part for part in parts if part)


def number(value: float) -> str:
    """Format a number with three significant digits."""
    places = 2 - floor(log10(abs(value))) if value else 0
    return f"{value:,.{min(max(places, 0), 3)}f}"


class Column(NamedTuple):
    """A column of a table.

    key: of `Results.record`; text: formats a known value. least: the minimum width of the terminal.
    """

    title: str
    meaning: str
    key: str
    text: Callable[[Any], str]
    least: int = 0


def _times(value: float) -> str:
    return f"{number(value)}×"


def _percent(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else f"{value:.1%}"


def _megabytes(value: float) -> str:
    return number(value / 1e6) if value >= LITTLE else "<1"


def _in(unit: float) -> Callable[[float], str]:
    return lambda value: number(value / unit)


COLUMNS = (
    Column("ms", "time of one call, the median of the rounds", "median", _in(1e-3)),
    Column("±", "half the interquartile range, relative to the median", "spread", _percent),
    Column("speed", "relative to plain in the same round, the median", "speed", _times),
    Column("MB", "peak memory beyond the inputs, with the results", "memory", _megabytes),
    Column("error", "largest difference from float64", "error", lambda v: f"{v:.1e}"),
    Column("of plain", "this error relative to that of plain", "error_of_plain", _times, 100),
    Column("GFLOP/s", "necessary operations per second", "flops_per_second", _in(1e9), 140),
    Column("peak", "the same, relative to the fastest matrix product", "of_peak", _percent, 90),
    Column("GB/s", "necessary bytes per second", "bytes_per_second", _in(1e9), 140),
    Column("copy", "the same, relative to the fastest copy", "of_bandwidth", _percent, 140),
    Column("compile s", "compilation, which the times exclude", "compiling", number),
    Column("mask ms", "building the mask, if that is separate", "building_mask", _in(1e-3), 140),
    Column("what ran", "from the profiler or the compiled program", "ran", str),
)
COUNTED = (
    "Operations: 4 * head_dim per allowed pair of query and key, 2.5 times as many backward (Dao "
    "2023); projections: 2 * d_in * d_out per token, twice as many backward. Bytes: inputs, "
    "outputs and their gradients, each once. Errors: of output and gradients in the first batch "
    "row, relative to the largest number; a row is wrong above twice the error of plain + 4 eps."
)
LEGEND = (
    "ms: median of the rounds, ±: half the interquartile range; speed: relative to plain in the "
    "same round\n"
    "MB: peak beyond the inputs; error: from float64; peak, copy: relative to the fastest"
)
STYLES = {
    "wrong": "bold red",
    "failed": "red",
    "skipped": "yellow",
    "waiting": "dim",
    "left out": "dim",
}


def shown(report: Results, table: Table) -> tuple[list[Column], list[dict[str, Any]]]:
    """Return the columns that have values, and the records that are or will be measured."""
    verdicts = ("right", "waiting", "wrong")
    records = [report.record(row, table) for row in table.ranked() if row.verdict in verdicts]
    known = [column for column in COLUMNS if any(record[column.key] for record in records)]
    return known, records


def remarks(table: Table) -> Iterator[tuple[str, str]]:
    """Yield remarks with their kind: one of `STYLES` for a row, "" for the table."""
    for row in reversed(table.ranked()):
        if row.reason:
            error = "" if row.error is None else f" (error {row.error:.1e})"
            yield row.verdict, f"{row.name}: {row.reason}{error}"
    reasons: dict[str, list[str]] = {}
    for name, reason in table.left_out.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield "left out", f"{', '.join(names)}: {reason}"
    notes = [table.note] if table.note else []
    if table.noise_floor is not None:
        least, most = table.noise_floor
        notes.append(f"noise: {baseline(table.setting)} is {least:.2f} to {most:.2f}× itself")
    if any(row.name.endswith(JAX) for row in table.rows):
        notes.append("JAX is always compiled (jit)")
    if notes:
        yield "", "; ".join(notes)


def terminal(report: Results, table: Table, width: int, doing: str = "") -> Group:
    """Return a table for a terminal of this width. doing: what is being measured."""
    parts: list[Any] = [Text(str(table.setting), "bold")]
    if table.skipped:
        return Group(*parts, Text(f"skipped: {table.skipped}", "yellow"), "")
    columns, records = shown(report, table)
    columns = [column for column in columns if width >= column.least]
    rows = [
        [str(record["rank"] or ""), record["name"], *(cell(c, record) for c in columns)]
        for record in records
    ]
    titles = ["", "implementation", *(column.title for column in columns)]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    grid = RichTable(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    for title in titles:
        words = title in ("implementation", COLUMNS[-1].title)
        grid.add_column(title, justify="left" if words else "right", no_wrap=True)
    if columns and columns[-1] is COLUMNS[-1]:  # cut the last column
        last = max(8, width - sum(widths[:-1]) - len(widths))
        rows = [[*row[:-1], Text(row[-1]).plain[:last]] for row in rows]
    for row, record in zip(rows, records, strict=True):
        grid.add_row(*row, style=STYLES.get(record["verdict"], ""))
    if rows:
        parts.append(grid)
    parts += [
        Text(f"{k}{': ' * bool(k)}{text}", STYLES.get(k, "dim")) for k, text in remarks(table)
    ]
    if doing:
        parts.append(Text(f"measuring: {doing}", "cyan"))
    return Group(*parts, "")


def cell(column: Column, record: dict[str, Any]) -> str:
    """Format a cell; a dash for an unknown value."""
    value = record[column.key]
    return "-" if value is None or value == "" else column.text(value)
