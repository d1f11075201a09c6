"""How well `attend` chooses a kernel, by `headway bench --tune`, which replaces its table.

    python -m benchmarks.tune --output docs/bench/tune.json

It takes nine minutes.
"""

from __future__ import annotations

from benchmarks import report
from benchmarks.sweep import headway_bench


def tables(results: report.Report) -> str:
    titles = {
        "regret": "`attend` / the best kernel",
        "a kernel against itself": "the chosen kernel / itself",
    }
    rows = [
        {
            "ratio of times": title,
            "calls": len(results["calls"]),
            "geometric mean": results[name]["geometric mean"],
            "least to most": [results[name]["least"], results[name]["most"]],
        }
        for name, title in titles.items()
    ]
    return report.tables({**results, "rows": rows})


def main() -> None:
    options = report.options(__doc__).parse_args()
    report.save(headway_bench("--tune", "tune.json"), options.output)


if __name__ == "__main__":
    main()
