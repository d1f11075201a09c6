"""What the tests of pages share: the browser, navigation, reading numbers, a server."""

import shutil
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import uvicorn

from headway.explore import export, server

# Debian's headless shell needs half the processor time of the complete browser.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")


@contextmanager
def watched(browser):
    """A new page. At the end no script of it has failed, and no request has left the machine."""
    # Without animations, which take a quarter of a second each.
    options = {"accept_downloads": True, "reduced_motion": "reduce"}
    context = browser.new_context(viewport={"width": 1280, "height": 860}, **options)
    opened = context.new_page()
    errors, requests = [], []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    yield opened
    context.close()
    assert errors == []
    inside = ("http://127.0.0.1:", "file:", "data:", "blob:", "about:")
    assert [url for url in requests if not url.startswith(inside)] == []


def written(folder, *trace, **options):
    """Write the page of a trace to a file, and return its address."""
    file = folder / "page.html"
    file.write_text(export.page(*trace, **options))
    return file.as_uri()


def opened(page, address):
    """Go there and wait until it is drawn. A page that is open already only moves."""
    page.goto(address)
    settled(page)


def settled(page):
    """Wait until what the address says is drawn."""
    page.wait_for_selector("body:not(.busy)")
    for _ in range(500):
        if page.evaluate("document.body.dataset.drawn === location.hash"):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never drawn: {page.url}: {page.inner_text('body')[:300]}")


def table(page):
    """The numbers of the table on the page, all their digits."""
    rows = page.locator("table.numbers tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(td => td.dataset.value))"
    )
    return np.array([[float(x.replace("Infinity", "inf")) for x in row] for row in rows])


def served(tracer, ask, folder):
    """The explorer's server in a thread, and its address."""
    return started(
        lambda port: server.app(server.Traces(tracer, ask, folder), server.Queue(), port)
    )


def started(app):
    """A server in a thread, and its address. app: makes the application for a port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(app(port), port=port, log_level="critical"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    return running, thread, f"http://127.0.0.1:{port}/"
