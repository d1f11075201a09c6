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
    "heads": "view=heads",
    "lens": "view=lens",
    "layer": "layer=1",
    "head": "layer=3&head=3&step=scores",
    "rotary": "layer=3&head=3&step=queries&without=1",
    "lines": "layer=3&head=3&step=weights&lines=1",
    "cell": "layer=3&head=3&step=weights&cell=8,7",
    "ladder": "ladder=1&rung=causal",
    "present": "present=1&layer=3&head=3&step=weights&frame=17",
}
TEXT = "If the list is empty, it returns None"


def take(browser, address, folder, **choices):
    """A picture of each state of the page at an address."""
    context = browser.new_context(viewport={"width": 1280, "height": 820}, **choices)
    page = context.new_page()
    for name, state in STATES.items():
        page.set_viewport_size({"width": 1280, "height": 720 if name == "present" else 820})
        page.goto("about:blank")
        page.goto(f"{address}#{state}")
        page.wait_for_selector("body:not(.busy) main")
        if name != "present":  # so high that nothing scrolls, with the line of the next token below
            height = page.evaluate("document.documentElement.scrollHeight")
            page.set_viewport_size({"width": 1280, "height": height})
        page.wait_for_timeout(300)
        page.screenshot(path=folder / f"{name}.png")
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
