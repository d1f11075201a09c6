"""The measurements on a GPU, with tiny models on a CPU: that the script runs, not how fast."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import report

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_section_runs_and_becomes_a_table(tmp_path, monkeypatch):
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--output", output]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = json.loads(output.read_text())
    names = ["training", "head and loss", "attention", "generation", "jax", "muon"]
    assert list(results["sections"]) == names
    for name in names:
        rows = results["sections"][name]["rows"]
        assert rows
        assert not [row for row in rows if row["what"] == "failed"], rows
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    monkeypatch.setattr(report, "BENCH", tmp_path)
    monkeypatch.setattr(report, "PAGES", [page])
    for _ in range(2):  # the second time it replaces the tables
        report.write_pages("gpu")
    text = page.read_text()
    assert text.count("**training**") == text.count("batch 16, 20 tokens") == 1
    assert text.endswith((ROOT / "docs" / "performance.md").read_text().split("<!-- end -->")[-1])
