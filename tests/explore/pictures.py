"""The pictures of docs/explorer: the four levels and the ladder, of a run.

PYTHONPATH=tests/explore python -m pictures runs/demo
"""

import sys
import tempfile
from pathlib import Path

from headway.explore import export
from headway.explore.tracers import ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel
from pages import CHROMIUM

STATES = {
    "model": "",
    "layer": "layer=1",
    "head": "layer=1&head=2&step=scores",
    "lines": "layer=1&head=2&step=weights&lines=1",
    "cell": "layer=1&head=2&step=weights&cell=5,3",
    "ladder": "ladder=1&rung=causal",
}
TEXT = "If the list is empty, it returns None"


def take(browser, address, folder, **choices):
    """A picture of each state of the page at an address."""
    context = browser.new_context(viewport={"width": 1280, "height": 820}, **choices)
    page = context.new_page()
    for name, state in STATES.items():
        page.goto("about:blank")
        page.goto(f"{address}#{state}")
        page.wait_for_selector("body:not(.busy) main")
        page.wait_for_timeout(300)
        page.screenshot(path=folder / f"{name}.png", full_page=True)
    context.close()


def main(run):
    from playwright.sync_api import sync_playwright

    folder = Path("docs/explorer")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        file = Path(temporary) / "page.html"
        file.write_text(
            export.page(
                *WithLadder(ModelTracer(StoredModel.open(run))).trace(TraceRequest(TEXT, write=24))
            )
        )
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        take(browser, file.as_uri(), folder)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
