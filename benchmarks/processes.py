"""The same run with one to four processes: losses, and what each process holds.

    python -m benchmarks.processes --output docs/bench/processes.json

It runs `headway train --processes N` in both engines: the recipe `small` with one token per
character, in float32, with dropout, for 50 steps of ten windows, which three and four processes
cannot divide evenly, two windows at a time. Two cores cannot show how the speed grows with the
number of processes, so no time is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report

from headway.bench.machine import machine
from headway.training import checkpoints

WORDS = ["--tokenizer", "char", "--batch", "10", "--micro-batch", "2", "--steps", "50"]
WORDS += ["--evaluate-every", "25", "--precision", "float32", "--device", "cpu"]
# PyTorch with each optimizer; Muon's learning rate is that of the recipe.
RUNS = {
    "PyTorch, Muon": [],
    "PyTorch, AdamW": ["--optimizer", "adamw", "--lr", "1e-3"],
    "JAX, Muon": ["--engine", "jax"],
}


def trained(folder: Path, count: int, words: list[str]) -> dict[str, Any]:
    """Train with some number of processes; return the losses and the numbers each one wrote."""
    name = f"of-{count}"
    compiled = [] if "jax" in words else ["--no-compile"]
    command = [sys.executable, "-m", "headway", "train", "--processes", str(count), "--name", name]
    subprocess.run(
        [*command, *WORDS, *words, *compiled], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    run = folder / "runs" / name
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = checkpoints.latest(run / "checkpoints")
    sizes = [
        sum(file.stat().st_size for file in last.glob(f"*-{rank:05}-of-*"))
        for rank in range(1, count + 1)
    ]
    whole = sum(file.stat().st_size for file in last.glob("*.safetensors"))
    return {
        "losses": [step["loss"] for step in steps],
        "validation": [step["validation"] for step in steps if step["validation"] is not None],
        "share": max(sizes) / whole if count > 1 else 1.0,
    }


def main() -> None:
    """Train every run with one to four processes."""
    output, rows = report.options(__doc__).parse_args().output, []
    for name, words in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            results = {n: trained(Path(folder), n, words) for n in (1, 2, 3, 4)}
        for count, result in results.items():
            row = {"run": name, "processes": count, "last loss": result["losses"][-1]}
            for what, title in (("losses", "loss"), ("validation", "validation loss")):
                pairs = zip(result[what], results[1][what], strict=True)
                row[f"largest difference of a {title}"] = max(abs(a / b - 1) for a, b in pairs)
            rows.append({**row, "share": result["share"]})
    report.save({"machine": machine(), "rows": rows}, output)


def tables(results: report.Report) -> str:
    """The rows; the losses of one process have no difference."""
    shown = [
        {
            **{name: row[name] for name in ("run", "processes")},
            "last loss": f"{row['last loss']:.6f}",
            **{
                name: f"{value:.1e}" if row["processes"] > 1 else ""
                for name, value in row.items()
                if name.startswith("largest")
            },
            "written by one process": f"{row['share']:.0%}",
        }
        for row in results["rows"]
    ]
    return report.tables({**results, "rows": shown})


if __name__ == "__main__":
    main()
