"""The page of the guide in a browser: every chapter and every figure, and what the server knows."""

import http.client
import json
import re

import pytest

from headway.learn import guide, server
from headway.learn import page as guide_page
from pages import started, watched

pytestmark = pytest.mark.xdist_group("browser")
CHAPTERS = [chapter.name for chapter in guide.chapters()]
# Pixels of the smallest letters of a slide in a window of 1920 x 1080. One exercise has 29 lines.
LEAST = {"text": 22, "figure": 22, "code": 20}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The address of the page as one file."""
    path = tmp_path_factory.mktemp("guide") / "guide.html"
    path.write_text(guide_page.file(), encoding="utf-8")
    return path.as_uri()


# The page asks the server every second; in tests more often.
OFTEN = (
    "{ const later = setTimeout; window.setTimeout = (act, ms) => later(act, Math.min(ms, 50)) }"
)


@pytest.fixture(scope="module")
def shared(browser):
    """One page for all tests, which is faster. Its policy blocks nothing that it needs."""
    with watched(browser) as opened:
        messages = []
        opened.on("console", lambda message: messages.append(message.text))
        opened.add_init_script(OFTEN)
        yield opened
        ended = ("status of 500", "ERR_CONNECTION_REFUSED")  # the servers of tests
        assert [one for one in messages if not any(word in one for word in ended)] == []


@pytest.fixture
def page(shared):
    shared.set_viewport_size({"width": 1280, "height": 860})
    return shared


def opened(page, address):
    """Go there and wait until all figures are drawn."""
    page.goto(address)
    drawn(page)


def drawn(page):
    page.wait_for_function(
        """() => {
            const target = document.getElementById(location.hash.slice(1) || "start")
            const article = target.closest("article")
            const figures = [...article.querySelectorAll("figure.live")]
            return !article.hidden && figures.every(figure => figure.dataset.drawn)
        }"""
    )


PICTURE = r"""figure => {
    const drawing = figure.querySelector(".drawing").outerHTML.replace(/hatch-\d+/g, "hatch")
    const canvases = [...figure.querySelectorAll("canvas")].map(one => one.toDataURL())
    return [drawing, ...canvases].join("\n")
}"""


@pytest.mark.parametrize("name", ["start", *CHAPTERS])
def test_a_chapter(page, file, name):
    """It opens in a second, draws all figures, fits on every screen, and can be broken."""
    opened(page, f"{file}#start")
    before = processor_time(page)
    page.evaluate("name => { location.hash = name }", name)
    page.wait_for_function("name => document.body.dataset.shown === name", arg=name)
    drawn(page)
    assert processor_time(page) - before < 1
    assert page.locator("article:visible").count() == 1
    assert page.inner_text("article:visible h1") in page.title()
    assert page.locator("article:visible .equation:not(:has(math))").count() == 0
    assert (page.locator("article:visible .live").count() > 0) == (name != "start")
    for figure in page.locator("article:visible .live:has(.break)").all():
        breaks_and_is_restored(page, figure)
    for width in (1920, 390):
        page.set_viewport_size({"width": width, "height": 900})
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OUTSIDE, width) == []
        assert page.evaluate(CUT_OFF) == []
    assert page.locator(".failed").count() == 0


def processor_time(page):
    """Seconds that the process of the page has computed; waiting for other processes is no part."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    metrics = session.send("Performance.getMetrics")["metrics"]
    session.detach()
    return next(one["value"] for one in metrics if one["name"] == "ProcessTime")


CUT_OFF = """() => [...document.querySelectorAll("article:not([hidden]) .equation")]
    .filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.textContent)"""
OUTSIDE = """width => [...document.querySelectorAll("article:not([hidden]) *")].filter(one => {
    const box = one.getBoundingClientRect()
    if (box.width === 0 || box.right <= width + 1) return false
    return !one.closest(".drawing *, .code, table, .equation, svg")
}).map(one => one.outerHTML.slice(0, 80))"""


def test_the_hatching_of_masked_cells_is_in_the_picture_itself(page, file):
    """That of another chapter is not drawn while the chapter is hidden."""
    opened(page, f"{file}#dropout")
    opened(page, f"{file}#batches")
    hatched = page.locator("article:visible [fill^='url(#']")
    assert hatched.count() > 1
    assert hatched.evaluate_all(
        "all => all.every(one => one.closest('svg').contains("
        "document.querySelector(one.getAttribute('fill').slice(4, -1))))"
    )


@pytest.mark.parametrize("name", ["mask", "dropout", "batches", "positions", "cache"])
def test_a_matrix_says_the_number_in_a_cell(page, file, name):
    """By mouse and by keyboard. Without the pointer, the line has the figure's numbers again."""
    opened(page, f"{file}#{name}")
    numbers = "svg[aria-label]:has([data-value]):not([aria-label^='sums'])"
    figures = page.locator(f"article:visible .live:has({numbers})").all()
    assert figures
    for figure in figures:
        line = figure.locator(".said")
        before = line.text_content()
        for matrix in figure.locator(numbers).all():
            cell = matrix.locator("[data-value]").first
            cell.hover()
            shown = line.locator("dd").last.text_content()
            value = float(cell.get_attribute("data-value"))
            assert float(shown.split("=")[-1].replace("−", "-")) == pytest.approx(value, rel=0.01)
            page.mouse.move(0, 0)
            assert line.text_content() == before
            matrix.focus()
            page.keyboard.press("ArrowDown")
            assert line.locator("dd").last.text_content() == shown  # also the first cell


def breaks_and_is_restored(page, figure):
    switch, before = figure.locator(".break"), figure.evaluate(PICTURE)
    assert switch.get_attribute("aria-pressed") == "false"
    assert not figure.locator(".consequence").is_visible()
    switch.press("Enter")  # with the keyboard
    page.wait_for_function("one => one.dataset.drawn === 'true'", arg=figure.element_handle())
    assert switch.get_attribute("aria-pressed") == "true"
    assert figure.locator(".consequence").is_visible()
    assert figure.evaluate(PICTURE) != before
    figure.get_by_role("button", name="Reset").first.press("Enter")
    page.wait_for_function("one => one.dataset.drawn === 'false'", arg=figure.element_handle())
    assert figure.evaluate(PICTURE) == before


SLIDES = """async () => {
    const press = key =>
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }))
    const all = what =>
        [...document.querySelectorAll(what)].filter(one => one.checkVisibility())
    const main = document.querySelector("main")
    const parts = [...document.querySelectorAll("article:not([hidden]) > section > *")]
        .filter(one => !one.matches("h1, h2"))
    const hasText = one => [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    const size = one => {
        const matrix = one.getScreenCTM?.() // of an SVG
        const scale = matrix && Math.hypot(matrix.a, matrix.b)
        const enlarged = main.getBoundingClientRect().width / main.offsetWidth
        return parseFloat(getComputedStyle(one).fontSize) * (scale ?? enlarged)
    }
    const isOutside = one => {
        const { left, top, right, bottom, width } = one.getBoundingClientRect()
        const isInside = left > -1 && top > -1 && right < innerWidth + 1 && bottom < innerHeight + 1
        return width > 0 && !isInside && !one.closest("details:not([open])")
    }
    const outside = () => all("main *").filter(isOutside).map(one => one.outerHTML.slice(0, 80))
    const slides = []
    scrollTo(0, 0) // a presentation begins where the reader is
    delete document.body.dataset.slide
    press("p")
    const many = Number(document.querySelector(".place").textContent.split("/")[1])
    for (let at = 0; at < many; at++) {
        while (document.body.dataset.slide !== String(at)) await new Promise(requestAnimationFrame)
        const shown = parts.filter(one => one.checkVisibility())
        slides.push({
            place: document.querySelector(".place").textContent,
            shown: shown.map(one => parts.indexOf(one)),
            text: Math.min(...shown.filter(one => !one.matches(".source")).map(size)),
            code: Math.min(...all("main .code").map(size)),
            figure: Math.min(
                ...all(".drawing *, .plot text, figcaption *").filter(hasText).map(size)),
            outside: outside(),
            wide: all(".drawing, .scroll, .code, .equation, main table")
                .filter(one => one.scrollWidth > one.clientWidth + 1)
                .map(one => one.outerHTML.slice(0, 80)),
        })
        for (const one of all(".break")) { // what is taller then is made smaller
            const { dataset } = one.closest("figure")
            one.click()
            while (dataset.drawn === "false") await new Promise(requestAnimationFrame)
            for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame)
            slides.at(-1).outside.push(...outside())
            one.click()
        }
        if (at < many - 1) press("ArrowRight")
    }
    press("Escape")
    return [parts.length, many, slides]
}"""


# The other chapters are slow; all together take a minute.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("scale", "heads"))) for n in CHAPTERS],
)
@pytest.mark.parametrize("window", [(1920, 1080), (1280, 720)])
def test_a_presentation_shows_everything_one_slide_at_a_time(page, file, name, window):
    """Nothing is outside of the window, and everything can be read from afar."""
    width, height = window
    page.set_viewport_size({"width": width, "height": height})
    opened(page, f"{file}#{name}")
    parts, many, slides = page.evaluate(SLIDES)
    assert [slide["place"] for slide in slides] == [f"{i + 1} / {many}" for i in range(many)]
    assert all(slide["shown"] for slide in slides)
    assert [part for slide in slides for part in slide["shown"]] == [*range(parts)]
    assert [one for slide in slides for one in slide["outside"] + slide["wide"]] == []
    for kind, least in LEAST.items():  # of infinity, if there is nothing of this kind
        room = (height - 58) / (1080 - 58)  # without the bar and the edge
        assert min(slide[kind] or least for slide in slides) >= least * room


def test_the_keyboard_alone(page, file):
    opened(page, file)
    names = ["start", *CHAPTERS]
    for name in names[1:]:
        page.keyboard.press("ArrowRight")
        page.wait_for_function("name => document.body.dataset.shown === name", arg=name)
    page.keyboard.press("ArrowRight")  # the last one
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("name => document.body.dataset.shown === name", arg=names[-2])
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    # A presentation continues in the next chapter, and goes back to the end of the previous one.
    page.goto(f"{file}#{names[1]}")
    drawn(page)
    page.keyboard.press("p")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.body.dataset.shown === 'start'")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("name => document.body.dataset.shown === name", arg=names[1])
    assert page.inner_text(".place").startswith("1 /")
    page.keyboard.press("Escape")
    assert page.locator(".place, .away").count() == 0
    assert page.locator("header").is_visible()


def test_contents_are_a_drawer_on_a_phone(page, file):
    page.set_viewport_size({"width": 390, "height": 800})
    opened(page, f"{file}#{CHAPTERS[0]}")
    menu, contents = page.get_by_role("button", name="Contents"), page.locator("#contents")
    assert not contents.is_visible()
    menu.press("Enter")
    assert contents.is_visible()
    assert menu.get_attribute("aria-expanded") == "true"
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "page"
    page.keyboard.press("Escape")
    assert not contents.is_visible()
    assert page.evaluate("document.activeElement.className") == "menu"
    menu.click()
    contents.get_by_role("link").last.click()
    page.wait_for_function("name => document.body.dataset.shown === name", arg=CHAPTERS[-1])
    assert not contents.is_visible()


def test_the_address_opens_a_section_and_a_wrong_one_the_first_page(page, file):
    opened(page, f"{file}#scale-what-was-measured")
    page.wait_for_timeout(50)
    top = page.locator("#scale-what-was-measured").bounding_box()["y"]
    assert 0 <= top < 300
    page.goto(f"{file}#nothing")
    page.wait_for_function("() => document.body.dataset.shown === 'start'")


def test_lines_have_65_to_70_characters(page, file):
    opened(page, f"{file}#{CHAPTERS[0]}")
    lengths = page.evaluate(
        """() => [...document.querySelectorAll("article:not([hidden]) section > p")].flatMap(p => {
            const range = document.createRange()
            range.selectNodeContents(p)
            const bottoms = [...range.getClientRects()].map(box => Math.round(box.bottom / 8))
            const lines = new Set(bottoms)
            return lines.size > 3 ? [p.textContent.length / lines.size] : []
        })"""
    )
    assert 60 < sum(lengths) / len(lengths) < 72


def test_without_scripts_everything_can_be_read(browser, file):
    context = browser.new_context(java_script_enabled=False)
    still = context.new_page()
    still.goto(file)
    for name in CHAPTERS:
        assert still.locator(f"#{name}").is_visible()
    assert still.locator("article").count() == still.locator("article:visible").count()
    assert still.locator(".consequence").count() == still.locator(".consequence:visible").count()
    assert still.locator("#contents").is_visible()
    context.close()


def test_light_and_dark(page, file):
    opened(page, f"{file}#scale")
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(100)
        colours.append(
            page.evaluate(
                """() => ["body", ".measured .curves [stroke^=light]", ".measured .labels text",
                          ".code .k", ".live rect"].map(one => {
                    const element = document.querySelector(`#scale ~ * ${one}, ${one}`)
                    const { color, backgroundColor, stroke, fill } = getComputedStyle(element)
                    return [color, backgroundColor, stroke, fill].join(" ")
                })"""
            )
        )
    assert all(light != dark for light, dark in zip(*colours, strict=True))


def test_a_figure_that_fails_says_so_and_the_others_are_drawn(page, file, tmp_path):
    whole = guide_page.file()
    kind = re.search(r"&quot;kind&quot;: &quot;(\w+)&quot;", whole)
    broken = tmp_path / "broken.html"
    broken.write_text(whole.replace(kind[0], "&quot;kind&quot;: &quot;nothing&quot;", 1))
    name = next(c.name for c in guide.chapters() if kind[0] in c.html)
    opened(page, f"{broken.as_uri()}#{name}")
    failed = page.locator("article:visible .failed")
    assert failed.count() == 1
    assert failed.inner_text() == 'This figure failed: there is no kind of figure "nothing".'


GRADE = {
    "passed": False,
    "fault": "softmax-axis",
    "message": "The rows do not sum to 1: `<b>wrong</b>` axis.",
    "line": 12,
    "code": "    return exps / exps.sum(axis=0)",
    "printed": "a\n",
    "example": {
        "what": "weights",
        "inputs": {"scores": [[1.0, "-Infinity"], [0.5, 2.0]]},
        "yours": [[[0.5, 0.5], ["Infinity", "NaN"]]],
        "right": [[[0.5, 0.5], [1.0, 0.0]]],
        "wrong": [0, 1, 1],
    },
}


@pytest.fixture
def progress():
    """What the server says, which a test can change."""
    scale = {"number": 5, "name": "scale", "title": "Scaled attention", "grade": None}
    scale["right"] = "the right"
    scale |= {"state": "open", "file": "learn/05_scale.py"}
    mask = {**scale, "number": 6, "name": "mask", "title": "A mask", "state": "locked"}
    return {"exercises": [scale, mask], "current": "scale"}


@pytest.fixture
def address(progress):
    running, thread, address = started(lambda port: server.app(lambda: progress, port))
    yield address
    running.should_exit = True
    thread.join()


def test_the_state_of_an_exercise_and_the_last_grade(page, progress, address):
    scale, mask = progress["exercises"]
    opened(page, f"{address}#scale")
    box, stub = page.locator("#exercise-scale"), page.locator("#exercise-scale .stub pre")
    mark = page.locator("#contents [data-chapter=scale] .mark")
    box.get_by_text("Your turn: edit learn/05_scale.py").wait_for()
    assert mark.inner_text() == "●"
    locked = page.locator("#exercise-mask .state")
    assert locked.text_content() == "Locked. Current exercise: 5 Scaled attention."
    assert stub.is_visible()
    scale["grade"] = GRADE
    box.get_by_text("The rows do not sum to 1: <b>wrong</b> axis.").wait_for()
    assert not stub.is_visible()
    assert box.locator(".wrong").get_attribute("title") == "softmax-axis"  # not for people
    assert "softmax-axis" not in box.inner_text()
    assert "headway learn --hint 5" in box.inner_text()
    assert box.locator(".wrong code").inner_text() == "<b>wrong</b>"
    assert "line 12" in box.inner_text()
    assert "return exps / exps.sum(axis=0)" in box.inner_text()
    titles = box.locator(".compared h3").all_inner_texts()
    assert titles == ["Your weights at [0]", "The right weights at [0]"]
    values = box.locator("svg.matrix").evaluate_all(
        "all => all.map(svg => [...svg.querySelectorAll('text')].map(one => one.dataset.value))"
    )
    assert values == [["0.5", "0.5", "Infinity", "NaN"], ["0.5", "0.5", "1", "0"]]
    assert box.locator(".outlined").count() == 2
    box.get_by_text("For these inputs").click()
    assert "-Infinity" in box.locator("dd").inner_text()
    scale["grade"] = {**GRADE, "fault": "not-started", "example": None}
    stub.wait_for()
    assert box.locator(".wrong").count() == 0
    scale |= {"state": "passed", "grade": None}
    mask |= {"state": "open"}
    progress["current"] = "mask"
    box.get_by_text("✓ Passed.").wait_for()
    assert mark.inner_text() == "✓"
    box.get_by_role("link", name="6 A mask").click()
    page.wait_for_function("() => document.body.dataset.shown === 'mask'")
    page.locator("#exercise-mask").get_by_text("Your turn: edit").wait_for()


def test_the_page_survives_the_end_of_the_server(page, address):
    opened(page, f"{address}#scale")
    page.route("**/progress", lambda route: route.fulfill(status=500))
    page.locator("body.stopped").wait_for()


def asked(address, path, **headers):
    host = address.removeprefix("http://").removesuffix("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def test_the_server_gives_the_page_and_nothing_else(progress, address):
    status, headers, body = asked(address, "/")
    assert (status, body.decode()) == (200, guide_page.page())
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/learn/static/main.js", "/explore/static/base.css"):
        assert asked(address, path)[0] == 200
    for path in ("/learn/static/..%2fguide.py", "/attention/static/x.js", "/static/main.js"):
        assert asked(address, path)[0] == 404
    assert json.loads(asked(address, "/progress")[2]) == progress


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}],
)
def test_other_sites_are_refused(address, headers):
    for path in ("/", "/progress", "/learn/static/main.js"):
        assert asked(address, path, **headers)[0] == 403
