"""Attention alone at three lengths, by `headway bench`.

    python -m benchmarks.sweep --output docs/bench/sweep.json

Causal, float32, 4 heads of 64, forward and backward. Speed is relative to the plain formula in the
same round, memory is beyond the inputs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report

ARGUMENTS = "--batch 1 --heads 4 --width 256 --tokens 1024,4096,8192 --kernels plain,tiled,sdpa"


def headway_bench(arguments: str, name: str) -> dict[str, Any]:
    """Run `headway bench`; return what it wrote to the file of this name."""
    command = [str(Path(sys.executable).with_name("headway")), "bench", *arguments.split()]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--output", f"{folder}/results"], check=True)
        return json.loads((Path(folder) / "results" / name).read_text(encoding="utf-8"))


def tables(results: report.Report) -> str:
    rows = [
        {
            "tokens": table["setting"]["tokens"],
            "implementation": row["name"],
            "ms": row["median"] and 1e3 * row["median"],
            "quartiles, ms": row["quartiles"] and [1e3 * value for value in row["quartiles"]],
            "times as fast as plain": row["speed"],
            "MB": row["memory"] and row["memory"] / 1e6,
            "not measured": row["reason"] or None,
        }
        for table in results["tables"]
        for row in table["rows"]
    ]
    return report.tables({**results, "rows": rows})


def main() -> None:
    parser = report.options(__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="to measure each row")
    options = parser.parse_args()
    arguments = f"{ARGUMENTS} --seconds {options.seconds}"
    report.save(headway_bench(arguments, "bench.json"), options.output)


if __name__ == "__main__":
    main()
