"""The plan against real training: the script for one GPU, with tiny models on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import plan_cluster, plan_device, report

from headway.plan.cards import CARDS
from headway.plan.memory import memory

ROOT = Path(__file__).parents[2]
CARD = {name: getattr(CARDS["h200"], name) for name in CARDS["h200"].__dataclass_fields__}
EFFICIENCY = {"products": 0.6, "attention": 0.3, "memory": 0.5, "links": 0.8, "network": 0.8}


def row(**changes):
    about = {"model": "gpt2 124M", "batch": 16, "windows at a time": 16, "optimizer": "adamw"}
    about |= {"compiled": False, "checkpointing": False, "ms": 50.0, "peak": 2**33}
    return {**about, "weights bytes": 1, "optimizer bytes": 2, "saved": 2**32, **changes}


def test_the_table_compares_time_and_memory():
    calibrated = {"gpt2 124M": {"card": CARD, "efficiency": EFFICIENCY, "milliseconds": {}}}
    failed = {**row(), "error": "out of memory"}
    rows = [row(), row(compiled=True, saved=None), failed]
    results = {"small": False, "rows": rows, "calibrated": calibrated}
    lines = plan_device.tables({**results, "machine": {"accelerator": "H200"}}).splitlines()
    work = plan_device.work_of(rows[0], small=False)
    error = memory(work).total / 2**33 - 1
    (eager,) = [line for line in lines if "| 50 |" in line and "compiled" not in line]
    assert f"{error:+.1%}" in eager
    (compiled,) = [line for line in lines if "| compiled |" in line]
    assert compiled.count("|  |") >= 1  # it was not calibrated with torch.compile
    assert any("out of memory" in line for line in lines)


def test_the_committed_clusters_are_those_of_the_code():
    committed = json.loads((report.BENCH / "plan_cluster.json").read_text())
    assert json.loads(json.dumps(plan_cluster.results())) == committed


@pytest.mark.slow
def test_the_script_runs(tmp_path):
    output = tmp_path / "plan_device.json"
    command = [sys.executable, "-m", "benchmarks.plan_device", "--small", "--output", output]
    subprocess.run([*command, "--seconds", "1"], cwd=ROOT, check=True, capture_output=True)
    results = json.loads(output.read_text())
    assert results["rows"]
    assert not any("error" in row for row in results["rows"])
    assert "gpt2 124M" in plan_device.tables(results)
