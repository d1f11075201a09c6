"""Opening the explorer on twelve layers of twelve heads, served and as one file.

    python -m benchmarks.explorer --output docs/bench/explorer.json

The model has GPT-2's sizes and random weights, its text random bytes. Measured in Debian's
Chromium, three times each with a new browser, the middle one is told: the seconds from the request
until every head's picture and the next tokens stand, and the private memory of the page's process.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import uvicorn
from benchmarks.sides import machine
from playwright.sync_api import Browser, sync_playwright

from headway.data.tokenizers import Tokenizer
from headway.explore import export, server, trace_file
from headway.explore.tracers import ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel
from headway.models.gpt import preset
from headway.torch.weights import build, to_arrays
from headway.training import checkpoints
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

LENGTHS, TIMES, PORT = (64, 1024), 3, 8791


def made_run(folder: Path) -> Run:
    """A run of GPT-2's sizes that learnt nothing."""
    sizes = {"vocabulary": 50257, "context": 1024, "width": 768, "layers": 12}
    model = preset("gpt2", sizes, attention={"heads": 12})
    tokenizer = Tokenizer.utf8_bytes()
    fields = ("next-token", "none", "", "byte", tokenizer.fingerprint, None)
    config = RunConfig(*fields, model, TrainingConfig())
    run = Run.create(folder / "gpt2-sized", config, tokenizer)
    gpt = build(config)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)  # heads that prefer something
    checkpoints.save(run.checkpoints, 0, {"model": to_arrays(gpt)}, {})
    return run


def opened(browser: Browser, address: str) -> tuple[float, float]:
    """Seconds until all is drawn, and megabytes of the process that draws it."""
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector(".next .bar", timeout=120_000)
    seconds = time.perf_counter() - began
    assert page.locator(".thumbnail").count() == 144
    time.sleep(1)
    memory = max(map(private, renderers()))
    page.close()
    return seconds, memory


def renderers() -> list[Path]:
    """Return the renderer processes of the browser."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"--type=renderer" in (process / "cmdline").read_bytes():
                processes.append(process)
        except OSError:
            pass  # it has ended
    return processes


def private(process: Path) -> float:
    """Return the private memory of a process in MB."""
    rows = (line.split() for line in (process / "smaps_rollup").read_text().splitlines()[1:])
    sizes = {row[0]: int(row[1]) for row in rows}
    return (sizes["Private_Clean:"] + sizes["Private_Dirty:"]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", help="also write JSON to this file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        subject = WithLadder(ModelTracer(StoredModel.open(made_run(folder).path)))
        for number, length in enumerate(LENGTHS):
            ask = TraceRequest("".join(random.Random(length).choices("abcdefgh ", k=length)))
            began = time.perf_counter()
            tensors, manifest = subject.trace(ask)
            traced = time.perf_counter() - began
            (folder / "page.html").write_text(export.page(tensors, manifest), encoding="utf-8")
            trace_file.save(folder / "trace", tensors, manifest)
            port = PORT + number
            app = server.app(subject, ask, port=port, folder=folder)
            running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
            threading.Thread(target=running.run, daemon=True).start()
            while not running.started:
                time.sleep(0.1)
            for kind, address, file in (
                ("served", f"http://127.0.0.1:{port}/", "trace"),
                ("one file", (folder / "page.html").as_uri(), "page.html"),
            ):
                measured = []
                for _ in range(TIMES):
                    browser = playwright.chromium.launch(
                        executable_path="/usr/bin/chromium", args=["--no-sandbox"]
                    )
                    measured.append(opened(browser, address))
                    browser.close()
                row = {
                    "tokens": length,
                    "page": kind,
                    "file MB": round((folder / file).stat().st_size / 1e6, 1),
                    "seconds to open": round(median(seconds for seconds, _ in measured), 2),
                    "private MB": round(median(memory for _, memory in measured)),
                    "seconds to trace": round(traced, 1),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
            running.should_exit = True
    if options.output:
        report = {"machine": machine(), "times": TIMES, "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
