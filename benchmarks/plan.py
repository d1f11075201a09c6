"""The time model of `headway plan` against published measurements: fit, test, and their errors.

    python -m benchmarks.plan --output docs/bench/plan.json

The fractions of a card's limits in `headway.plan.cards.EFFICIENCIES` are those that minimize the
mean of the squared logarithms of predicted / measured over every second row; the other rows test
them. It takes ten seconds, without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks import report

from headway.plan.cards import Efficiency
from headway.plan.published import SOURCES, Row, rows
from headway.plan.seconds import seconds

GENERATIONS = ("ampere", "hopper")
MODES = (False, True)  # compiled
# products and attention of each generation; memory of each mode.
START = {("products", g): 0.7 for g in GENERATIONS} | {("attention", g): 0.7 for g in GENERATIONS}
START |= {("memory", mode): 0.7 for mode in MODES}
Values = dict[tuple[str, Any], float]


def predicted(row: Row, values: Values) -> float:
    """Tokens per second and GPU."""
    generation = row.cluster.card.generation
    efficiency = Efficiency(
        values["products", generation],
        values["attention", generation],
        values["memory", row.work.compiled],
    )
    times = seconds(row.work, row.cluster, efficiency, row.averaging)
    return row.work.tokens_per_step / times.total


def loss(table: Sequence[Row], values: Values) -> float:
    return sum(math.log(predicted(row, values) / row.speed) ** 2 for row in table) / len(table)


def fit(table: Sequence[Row]) -> Values:
    """Minimize the loss by one value at a time, in steps that become smaller."""
    values, step = dict(START), 0.1
    while step > 0.002:
        before = loss(table, values)
        for name in values:
            choices = [values[name] + change for change in (-step, 0, step)]
            choices = [min(max(value, 0.05), 1.0) for value in choices]
            values[name] = min(choices, key=lambda v, name=name: loss(table, {**values, name: v}))
        if loss(table, values) >= before:
            step /= 2
    return {name: round(value, 2) for name, value in values.items()}


def results() -> dict[str, Any]:
    """The fitted values, the errors by source, and all rows."""
    table = rows()
    values = fit(table[::2])
    shown = [_row(row, values, "test" if number % 2 else "fit") for number, row in enumerate(table)]
    fitted = {
        "products, Ampere": values["products", "ampere"],
        "products, Hopper": values["products", "hopper"],
        "attention, Ampere": values["attention", "ampere"],
        "attention, Hopper": values["attention", "hopper"],
        "memory, eager": values["memory", False],
        "memory, compiled": values["memory", True],
    }
    sources = [*SOURCES, "all"]
    summary = [_summary(shown, source, half) for source in sources for half in ("fit", "test")]
    return {"fitted": fitted, "summary": [row for row in summary if row], "rows": shown}


def _row(row: Row, values: Values, half: str) -> dict[str, Any]:
    work, plan = row.work, predicted(row, values)
    marks = {"compiled": work.compiled, "repeats half": work.recomputed == 0.5}
    marks["checkpointing"] = work.recomputed == 1
    return {
        "source": row.source,
        "model": row.model,
        "GPUs": f"{row.gpus} {row.card}",
        "windows x tokens": f"{work.micro_batches} x {work.rows} x {work.tokens:,}",
        "settings": ", ".join(name for name, is_set in marks.items() if is_set),
        "half": half,
        "tokens/s": round(row.speed),
        "plan": round(plan),
        "error": round(plan / row.speed - 1, 3),
    }


def _summary(shown: Sequence[dict[str, Any]], source: str, half: str) -> dict[str, Any] | None:
    errors = [
        row["error"] for row in shown if source in (row["source"], "all") and row["half"] == half
    ]
    if not errors:
        return None
    sizes = [abs(error) for error in errors]
    return {
        "source": source,
        "half": half,
        "rows": len(errors),
        "mean error": round(mean(sizes), 3),
        "largest": max(errors, key=abs),
        "within 15%": f"{sum(size < 0.15 for size in sizes)} of {len(sizes)}",
    }


def tables(report_: report.Report) -> str:
    """The fitted fractions, the errors by source and, folded, those of all rows."""
    fitted = report.table(
        [{"fraction of a limit": n, "fit": v} for n, v in report_["fitted"].items()]
    )
    percent = [
        {**row, "mean error": f"{row['mean error']:.1%}", "largest": f"{row['largest']:+.1%}"}
        for row in report_["summary"]
    ]
    all_rows = [{**row, "error": f"{row['error']:+.1%}"} for row in report_["rows"]]
    sources = "\n".join(f"- {name}: {text}." for name, text in SOURCES.items())
    return (
        f"{fitted}\n\n{report.table(percent)}\n\n{sources}\n\n<details>\n"
        f"<summary>All {len(all_rows)} rows</summary>\n\n{report.table(all_rows)}\n\n</details>"
    )


def main() -> None:
    options = report.options(__doc__).parse_args()
    report.save(results(), options.output)


if __name__ == "__main__":
    main()
