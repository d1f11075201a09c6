"""Draw a figure of the guide alone, without the frame of `figure.js`."""

import json
import re
import tomllib
from importlib import resources

import numpy as np

from headway.ladder.rung import INPUTS, SENTENCE
from headway.ladder.trainable import BOOK
from headway.learn.guide import CHAPTERS

ADDRESS = "http://127.0.0.1:1/"  # answered by `route`, without a server
TYPES = {"js": "text/javascript", "css": "text/css"}
EXAMPLE = {"sentence": SENTENCE, "inputs": INPUTS, **{k: v.tolist() for k, v in BOOK.items()}}
HTML = f"""<!doctype html><meta charset="utf-8"><main></main>
<link rel="stylesheet" href="explore/static/base.css">
<link rel="stylesheet" href="learn/static/figures.css">
<script type="application/json" id="book">{json.dumps(EXAMPLE)}</script>"""
DRAW = """async ([kind, options, broken, width]) => {
    const { draw } = await import(`./learn/static/${kind}.js`)
    const figure = {
        broken, width, large: false, state: {}, said: {},
        say: pairs => { figure.said = Object.fromEntries(pairs) },
        point: pairs => { figure.say(pairs ?? []) },
        redraw: () => { document.querySelector("main").replaceChildren(draw(options, figure)) },
    }
    window.figure = figure
    figure.redraw()
}"""


def drawn(page, kind, options=None, *, broken=False, width=760):
    """Draw a figure on a page; the page's `figure` is what its `draw` got."""
    if not page.url.startswith(ADDRESS):
        page.route(f"{ADDRESS}**", _answer)
        page.goto(ADDRESS)
    page.evaluate(DRAW, [kind, options or {}, broken, width])


def said(page):
    """The line of numbers below the figure."""
    return page.evaluate("figure.said")


def matrix(page, selector):
    """The rows of a drawn matrix with all digits; hatched cells are 0."""
    return page.locator(selector).first.evaluate(
        """svg => {
            const cells = [...svg.querySelectorAll(":scope > g > *")]
            const rows = new Map()
            cells.forEach((cell, i) => {
                if (cell.tagName !== "rect") return
                const y = cell.getAttribute("y")
                const number = cells[i + 1]?.tagName === "text" ? cells[i + 1].dataset.value : 0
                rows.set(y, [...(rows.get(y) ?? []), Number(number)])
            })
            return [...rows.values()]
        }"""
    )


def options(chapter, kind):
    """The options of the figures of a kind in a chapter, such as 06_mask."""
    blocks = re.findall(
        r"^```figure\n(.*?)^```$", (CHAPTERS / f"{chapter}.md").read_text(), re.S | re.M
    )
    return [each for each in map(tomllib.loads, blocks) if each["kind"] == kind]


def called(page, module, name, *arguments):
    """The result of a function of a module, such as "compute" and "softmax"."""
    if not page.url.startswith(ADDRESS):
        page.route(f"{ADDRESS}**", _answer)
        page.goto(ADDRESS)
    script = "async ([module, name, given]) => (await import(`./learn/static/${module}.js`))[name](...given)"  # noqa: E501
    return page.evaluate(script, [module, name, arguments])


def array(matrix):
    """A matrix that a function of a module returned."""
    data = matrix["data"]
    numbers = list(data.values()) if isinstance(data, dict) else data
    return np.array(numbers, float).reshape(matrix["rows"], matrix["columns"])


def _answer(route):
    path = route.request.url.removeprefix(ADDRESS)
    if not path:
        route.fulfill(body=HTML, content_type="text/html")
        return
    file = resources.files("headway").joinpath(path)
    if file.is_file():
        route.fulfill(body=file.read_bytes(), content_type=TYPES[path.rpartition(".")[2]])
    else:
        route.fulfill(status=404, body="")
