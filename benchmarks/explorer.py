"""Opening the explorer on twelve layers of twelve heads and on a text of 32,000 tokens.

    python -m benchmarks.explorer --output docs/bench/explorer.json

The first model has GPT-2's sizes, the second is small and rotary, with a context of 32,768 tokens;
both have random weights, and the text is random bytes. Measured in Debian's Chromium, three times
each with a new browser; the median is reported: the seconds from the request until the pictures of
all heads and the next tokens are drawn, and the private memory of the page's process. The page is
that of a trace file, served, and as one HTML file.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import uvicorn
from benchmarks import report
from benchmarks.sides import machine
from playwright.sync_api import Browser, sync_playwright

from headway.data.tokenizers import Tokenizer
from headway.explore import export, server, trace_file
from headway.explore.tracers import ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel
from headway.models.gpt import GPTConfig, preset
from headway.torch.weights import build, to_arrays
from headway.training import checkpoints
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

TIMES = 3
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
GPT2 = preset(
    "gpt2",
    {"vocabulary": 50257, "context": 1024, "width": 768, "layers": 12},
    attention={"heads": 12},
)
LONG = preset(
    "modern",
    {"vocabulary": 256, "context": 32_768, "width": 32, "layers": 2},
    attention={"heads": 4},
)
CASES = ((GPT2, 64), (GPT2, 1024), (LONG, 32_000))


def made_run(folder: Path, model: GPTConfig) -> Run:
    """A run with random weights."""
    tokenizer = Tokenizer.utf8_bytes()
    fields = ("next-token", "none", "", "byte", tokenizer.fingerprint, None)
    config = RunConfig(*fields, model, TrainingConfig())
    run = Run.create(folder / "run", config, tokenizer)
    gpt = build(config)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)  # heads that prefer something
    checkpoints.save(run.checkpoints, 0, {"model": to_arrays(gpt)}, {})
    return run


def opened(browser: Browser, address: str, heads: int) -> tuple[float, float]:
    """Return the seconds until all is drawn, and the megabytes of the process that draws it."""
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector(".next .bar", timeout=120_000)
    seconds = time.perf_counter() - began
    assert page.locator(".thumbnail").count() == heads
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


@contextmanager
def served(file: Path) -> Iterator[str]:
    """A server of a trace file, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = server.app(server.File(file), server.Queue(), port)
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=running.run, args=[[listener]])
        thread.start()
        while not running.started:
            time.sleep(0.1)
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            running.should_exit = True
            thread.join()


def main() -> None:
    options = report.options(__doc__).parse_args()
    rows: list[dict[str, Any]] = []
    for model, length in CASES:
        with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
            folder = Path(name)
            subject = WithLadder(ModelTracer(StoredModel.open(made_run(folder, model).path)))
            text = "".join(random.Random(length).choices("abcdefgh ", k=length))
            began = time.perf_counter()
            trace = subject.trace(TraceRequest(text))
            traced = time.perf_counter() - began
            page, file = folder / "page.html", folder / "t.safetensors"
            page.write_text(export.page(*trace), encoding="utf-8")
            trace_file.save(file, *trace)
            with served(file) as address:
                for kind, at, content in (
                    ("served", address, file),
                    ("one file", page.as_uri(), page),
                ):
                    measured = []
                    for _ in range(TIMES):
                        browser = playwright.chromium.launch(
                            executable_path=CHROMIUM, args=["--no-sandbox"]
                        )
                        heads = model.layers * model.attention.heads
                        measured.append(opened(browser, at, heads))
                        browser.close()
                    seconds, memory = zip(*measured, strict=True)
                    row = {
                        "tokens": length,
                        "heads": f"{model.layers} x {model.attention.heads}",
                        "page": kind,
                        "file MB": round(content.stat().st_size / 1e6, 1),
                        "seconds to open": round(median(seconds), 2),
                        "least to most, s": [round(f(seconds), 2) for f in (min, max)],
                        "private MB": round(median(memory)),
                        "seconds to trace": round(traced, 1),
                    }
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    report.save({"machine": machine(), "times": TIMES, "rows": rows}, options.output)


if __name__ == "__main__":
    main()
