"""What a run found: as plain values for JSON, and as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from math import floor, log10
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from headway.bench.compare import Row, Table, size
from headway.bench.sides import JAX, yardstick

LITTLE = 1e6  # bytes of memory below which nothing can be told


@dataclass
class Results:
    """A run: the machine, its peaks, and the tables.

    seconds: of a row, for its rounds. peaks: floating-point operations a second of the best matrix
    product in a dtype, or in float32 if that is faster; bandwidth: bytes a second, read and
    written, of the best copy.
    """

    machine: dict[str, Any]
    seconds: float
    bandwidth: float
    peaks: dict[str, float] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON. Times are in seconds, memory in bytes; what is unknown is null.

        machine, seconds, bandwidth, peaks: as above.
        tables: a list of
            setting: the fields of `Setting`; title: the same in words; flops, bytes: of one run;
            skipped: why nothing was measured, or ""; note: what is particular, or "";
            plain_error: the plain mechanism's; noise_floor: the quartiles of the yardstick's
            speed against itself; left_out: {name: reason};
            rows: the best first, as `record` explains.
        """
        return {
            "machine": self.machine,
            "seconds": self.seconds,
            "bandwidth": self.bandwidth,
            "peaks": self.peaks,
            "tables": [self._table(table) for table in self.tables],
        }

    def record(self, row: Row, table: Table) -> dict[str, Any]:
        """One row, for JSON and for the columns.

        rank: 1 for the fastest, null for what is not ranked. verdict: "right", "wrong", "failed"
        (raised an error), "skipped" (too large, too slow) or "waiting" (not measured), and the
        reason. ran: the kernel that ran. seconds: a run's, one number a round; median, quartiles:
        of them; spread: half of what lies between the quartiles, of the median. speed: against the
        yardstick in the same round, the median. flops_per_second, bytes_per_second, and what part
        of the machine's peaks they are. memory: the most beyond the inputs. error: see
        `Exact.error`; error_of_plain: by the plain mechanism's. compiling, building_mask: seconds.
        """
        kept = ("name", "verdict", "reason", "ran", "seconds", "median", "speed", "memory", "error")
        found = {name: getattr(row, name) for name in (*kept, "compiling", "building_mask")}
        ranked = row.verdict == "right" and row.seconds
        found["rank"] = table.ranked().index(row) + 1 if ranked else None
        found["quartiles"] = row.quartiles and [*row.quartiles]
        rest = ("spread", "flops_per_second", "of_peak", "bytes_per_second", "of_bandwidth")
        found |= dict.fromkeys((*rest, "error_of_plain"))
        if row.median:
            flops, moved = table.setting.flops / row.median, table.setting.bytes / row.median
            found["flops_per_second"], found["bytes_per_second"] = flops, moved
            found["of_peak"] = flops / self.peaks[table.setting.dtype]
            found["of_bandwidth"] = moved / self.bandwidth
        if row.median and row.quartiles:
            found["spread"] = (row.quartiles[1] - row.quartiles[0]) / 2 / row.median
        if row.error is not None and table.plain_error:
            found["error_of_plain"] = row.error / table.plain_error
        return found

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
        """The machine and its peaks, in a line."""
        found = self.machine
        parts = [
            f"{found['processor']}, {found['cores']} cores, threads used: {found['threads']}",
            found.get("accelerator", ""),
            size(found["memory"]) if "memory" in found else "",
            *(f"{name} {found[name]}" for name in ("torch", "jax") if name in found),
            *(f"{peak / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, peak in self.peaks.items()),
            f"{self.bandwidth / 1e9:,.0f} GB/s",
        ]
        return ", ".join(part for part in parts if part)


def number(value: float) -> str:
    """Three digits that count."""
    places = 2 - floor(log10(abs(value))) if value else 0
    return f"{value:,.{min(max(places, 0), 3)}f}"


class Column(NamedTuple):
    """A column of a table.

    key: of `Results.record`; text: of a value that is known. least: the columns of a terminal that
    has room for it.
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
    Column("ms", "one run, the median of the rounds", "median", _in(1e-3)),
    Column("±", "half of what lies between the quartiles, of the median", "spread", _percent),
    Column("speed", "against plain in the same round, the median of the rounds", "speed", _times),
    Column("MB", "the most memory beyond the inputs; results are counted", "memory", _megabytes),
    Column("error", "the largest difference from float64", "error", lambda v: f"{v:.1e}"),
    Column("of plain", "that error by the plain mechanism's", "error_of_plain", _times, 100),
    Column("GFLOP/s", "necessary operations a second", "flops_per_second", _in(1e9), 140),
    Column("peak", "the same, of the machine's best matrix product", "of_peak", _percent, 90),
    Column("GB/s", "necessary bytes a second", "bytes_per_second", _in(1e9), 140),
    Column("copy", "the same, of the machine's best copy", "of_bandwidth", _percent, 140),
    Column("compile s", "compiling, which the times leave out", "compiling", number),
    Column("mask ms", "building the mask, where that is apart", "building_mask", _in(1e-3), 140),
    Column("what ran", "as the profiler or the compiled program tells", "ran", str),
)
COUNTED = (
    "Operations: 4 * head_dim for each pair of a query and a key that may meet, 2.5 times that "
    "backward (Dao 2023); with projections 2 * d_in * d_out a token, twice that backward. Bytes: "
    "inputs, outputs and their gradients once each. Errors: of output and gradients, in the first "
    "batch row, of the largest number; a row is wrong above twice plain's error + 4 eps."
)
LEGEND = "\n".join(
    (
        "ms: median of the rounds, ±: half their quartiles' distance; speed: against plain, round "
        "by round",
        "MB: the most beyond the inputs; error: from float64; peak, copy: of the machine's best",
    )
)
STYLES = {
    "wrong": "bold red",
    "failed": "red",
    "skipped": "yellow",
    "waiting": "dim",
    "left out": "dim",
}


def shown(report: Results, table: Table) -> tuple[list[Column], list[dict[str, Any]]]:
    """The columns in which there is something, and the records that have numbers (or will)."""
    verdicts = ("right", "waiting", "wrong")
    records = [report.record(row, table) for row in table.ranked() if row.verdict in verdicts]
    known = [column for column in COLUMNS if any(record[column.key] for record in records)]
    return known, records


def remarks(table: Table) -> Iterator[tuple[str, str]]:
    """What there is to say of rows (its kind, one of `STYLES`) and of the whole table ("")."""
    for row in reversed(table.ranked()):
        if row.reason:
            error = "" if row.error is None else f" (error {row.error:.1e})"
            yield row.verdict, f"{row.name}: {row.reason}{error}"
    reasons: dict[str, list[str]] = {}
    for name, reason in table.left_out.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield "left out", f"{', '.join(names)}: {reason}"
    said = [table.note] if table.note else []
    if table.noise_floor is not None:
        least, most = table.noise_floor
        said.append(f"noise: {yardstick(table.setting)} against itself {least:.2f} to {most:.2f}×")
    if any(row.name.endswith(JAX) for row in table.rows):
        said.append("JAX is always compiled (jit)")
    if said:
        yield "", "; ".join(said)


def terminal(report: Results, table: Table, width: int, doing: str = "") -> Group:
    """A table for a terminal of so many columns. doing: what is being measured, if anything is."""
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
    widths = [max(map(len, each)) for each in zip(titles, *rows, strict=True)]
    grid = RichTable(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    for title in titles:
        words = title in ("implementation", COLUMNS[-1].title)
        grid.add_column(title, justify="left" if words else "right", no_wrap=True)
    if columns and columns[-1] is COLUMNS[-1]:  # of the last column what there is room for
        room = max(8, width - sum(widths[:-1]) - len(widths))
        rows = [[*row[:-1], Text(row[-1]).plain[:room]] for row in rows]
    for row, record in zip(rows, records, strict=True):
        grid.add_row(*row, style=STYLES.get(record["verdict"], ""))
    if rows:
        parts.append(grid)
    parts += [
        Text(f"{k}{': ' * bool(k)}{said}", STYLES.get(k, "dim")) for k, said in remarks(table)
    ]
    if doing:
        parts.append(Text(f"measuring: {doing}", "cyan"))
    return Group(*parts, "")


def cell(column: Column, record: dict[str, Any]) -> str:
    """The text of a cell."""
    value = record[column.key]
    return "-" if value is None or value == "" else column.text(value)
