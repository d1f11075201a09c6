"""What the benchmarks share: statistics, options, JSON files, and the tables of the pages.

The results of `benchmarks/NAME.py` are in docs/bench/NAME.json. A page shows them between two
markers, `<!-- begin: NAME, written by python -m benchmarks -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "docs" / "bench"
PAGES = (
    *(ROOT / "README.md", BENCH / "README.md"),
    *(ROOT / "docs" / name for name in ("performance.md", "scale.md")),
)
REGION = re.compile(
    r"(?P<begin><!-- begin: (?P<name>\w+), written by python -m benchmarks -->\n)"
    r"(?P<text>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)
Row = Mapping[str, Any]
Report = Mapping[str, Any]


def middle(values: Sequence[float]) -> float:
    """The median, with four digits."""
    return digits(statistics.median(values))


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third quartile, with four digits."""
    return [digits(value) for value in statistics.quantiles(values, n=4)[::2]]


def ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return middle([one / other for one, other in zip(ones, others, strict=True)])


def digits(value: float) -> float:
    return float(f"{value:.4g}")


def options(description: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """The options of a benchmark: --output and, with a default, --rounds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="also write JSON to this file")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def save(report: Report, output: Path | None) -> None:
    """Print a report as JSON, and write it to a file."""
    text = json.dumps(report, indent=1, ensure_ascii=False)
    print(text, flush=True)
    if output:
        output.write_text(text + "\n", encoding="utf-8")


def tables(report: Report) -> str:
    """A report as Markdown: the machine and one line per row. A module may have its own."""
    parts = [about(report["machine"])] if "machine" in report else []
    return "\n\n".join([*parts, table(report["rows"])])


def named(rows: Mapping[str, Row]) -> list[Row]:
    """Rows from a mapping, with their names in the first column."""
    return [{"what": name, **row} for name, row in rows.items()]


def about(machine: Row) -> str:
    """The machine, the versions and the date in one line."""
    accelerator = machine.get("accelerator")
    names = {"python": "Python", "torch": "PyTorch", "jax": "JAX", "transformers": "transformers"}
    parts = [accelerator or f"{machine['processor']}, threads: {machine['threads']}"]
    parts += [f"{title} {machine[name]}" for name, title in names.items() if name in machine]
    return f"{', '.join([*parts, *(machine[x][:10] for x in ['date'] if x in machine)])}."


def table(rows: Sequence[Row]) -> str:
    """Rows as a table, without columns that are empty."""
    names = dict.fromkeys(name for row in rows for name in row if row[name] not in (None, []))
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(cell(row.get(name)) for name in names)} |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A number with three digits, a range, or a text."""
    if isinstance(value, list):
        return " to ".join(map(cell, value))
    if isinstance(value, (int, float)):
        return f"{value:,.0f}" if abs(value) >= 100 or isinstance(value, int) else f"{value:.3g}"
    return "" if value is None else str(value)


def read(name: str) -> str:
    """What the pages show between the markers of a name: nothing before it is measured."""
    file = BENCH / f"{name}.json"
    if not file.exists():
        return ""
    has_module = (Path(__file__).parent / f"{name}.py").exists()
    module = importlib.import_module(f"benchmarks.{name}") if has_module else None
    show = getattr(module, "tables", tables)
    return show(json.loads(file.read_text(encoding="utf-8"))) + "\n"


def filled(page: str, *names: str) -> str:
    """A page's text with what the JSON files hold between the markers of these names, or all."""

    def region(found: re.Match[str]) -> str:
        keep = names and found["name"] not in names
        return found[0] if keep else found["begin"] + read(found["name"]) + found["end"]

    return REGION.sub(region, page)


def write_pages(*names: str) -> None:
    """Write the tables of these benchmarks, or all, into the pages again from the JSON files."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), *names), encoding="utf-8")
