"""The page of a comparison in a browser: what it says, its matrices, and how one moves in it."""

import json
import math
import re

import pytest
import torch

import command
import headway
import planted
from headway.divergence.measure import MISSING
from headway.divergence.page import MOST, page
from headway.divergence.report import Cause, Report, Step
from pages import watched

pytestmark = pytest.mark.xdist_group("browser")
SCORES = "blocks.0.attention.scores"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A port of GPT-2 in which a token sees the next one."""
    folders = planted.folders(tmp_path_factory.mktemp("ports"), only=("gpt2",))
    faults = {fault.name: fault for fault in planted.FAULTS if fault.port == "gpt2"}
    model, _ = planted.load("gpt2", faults["a token sees the next one"], folders["gpt2"])
    return headway.diff(folders["gpt2"], model, planted.tokens())


@pytest.fixture(scope="module")
def shared(browser):
    """One page for all tests, which is faster. Nothing is written to its console."""
    with watched(browser) as opened:
        messages = []
        opened.on("console", lambda message: messages.append(message.text))
        yield opened
        assert messages == []


@pytest.fixture
def show(shared, tmp_path):
    """Open the page of a report, and return the browser's page."""

    def opened(report, step=""):
        file = tmp_path / "report.html"
        file.write_text(page(report), encoding="utf-8")
        shared.goto("about:blank")  # another place in the same file would not be opened again
        shared.goto(f"{file.as_uri()}#{step}")
        return shared

    return opened


def made(a, b, name="step", titles=("A", "B")):
    """A report of one step that differs."""
    values = [torch.as_tensor(x, dtype=torch.float64) for x in (a, b)]
    step = Step(name, "different", 1.0, 1e-6)
    return Report(titles, "float64", (step,), (), False, (), {name: tuple(values)})


def facts(opened):
    """The row, column, and three numbers that the page shows."""
    where, *numbers = opened.locator(".facts dd").all_inner_texts()
    row, column = map(int, re.findall(r"\d+", where))
    return row, column, [number.replace("−", "-") for number in numbers]


def drawn(opened, name):
    opened.wait_for_function("name => document.body.dataset.drawn === name", arg=name)


def hover(opened, matrix, row, column):
    """Point at a cell of one of the three matrices; the number in it may be above it."""
    columns = int(
        re.search(r"by (\d+)", opened.locator(".matrix").nth(0).get_attribute("aria-label"))[1]
    )
    opened.locator(".matrix").nth(matrix).locator("g rect").nth(row * columns + column).hover(
        force=True
    )


def test_it_shows_the_cause_and_the_numbers_of_a_cell(report, show):
    opened = show(report)
    cause = report.cause
    top = opened.inner_text("header")
    assert f"first wrong step: {cause.name}, and the same in every layer" in top
    assert cause.place in top
    assert cause.looks in top
    assert "the cause is proved" in top
    assert opened.inner_text("nav [aria-current]").endswith("wrong")
    assert opened.inner_text("main h2") == cause.name
    assert opened.locator(".matrix").count() == 3
    assert facts(opened)[2][::2] == ["-∞", "-∞"]
    hover(opened, 1, 9, 4)
    a, b = (values[0, 0, 9, 4] for values in report.values[cause.name])
    row, column, numbers = facts(opened)
    assert (row, column) == (9, 4)
    assert [float(x) for x in numbers[:2]] == pytest.approx([float(a), float(b)], rel=0.01)
    lit = opened.locator(".matrix rect.lit[visibility=visible]")
    assert lit.count() == 6  # a row and a column of each
    assert len({*lit.evaluate_all("all => all.map(one => one.getAttribute('y'))")}) == 2


def test_another_step_by_mouse_keyboard_and_address(report, show):
    opened = show(report, SCORES)
    assert opened.inner_text("main h2") == SCORES
    before = opened.inner_html("main")
    opened.click("nav a >> text=attention_norm >> nth=0")
    drawn(opened, "blocks.0.attention_norm")
    assert opened.inner_html("main") != before
    a, b = (x.double() for x in report.values["blocks.0.attention_norm"])
    row, column, numbers = facts(opened)
    batch = int(re.search(r"batch row (\d)", opened.inner_text("main"))[1])
    assert (batch, row, column) == tuple(
        int(i) for i in torch.unravel_index((a - b).abs().argmax(), a.shape)
    )
    assert float(numbers[2]) == pytest.approx(float((a - b)[batch, row, column]), rel=0.01)
    names = [step.name for step in report.steps]
    opened.keyboard.press("ArrowDown")
    drawn(opened, names[names.index("blocks.0.attention_norm") + 1])
    opened.keyboard.press("ArrowUp")
    opened.keyboard.press("ArrowUp")
    drawn(opened, "embedded")
    opened.keyboard.press("ArrowUp")  # the first one
    drawn(opened, "embedded")
    assert opened.url.endswith("#embedded")
    assert opened.locator("nav [aria-current]").count() == 1
    opened.locator(".matrix").nth(0).focus()
    row, *_ = facts(opened)
    opened.keyboard.press("ArrowUp" if row else "ArrowDown")  # moves between the cells
    assert facts(opened)[0] == (row - 1 if row else 1)
    assert opened.url.endswith("#embedded")
    opened.goto(opened.url.replace("#embedded", "#blocks.0.attention.weights"))
    drawn(opened, "blocks.0.attention.weights")
    assert "not found in GPT2" in opened.inner_text("main")
    for _ in names[names.index("blocks.0.attention.weights") + 1 :]:
        opened.keyboard.press("ArrowDown")
    drawn(opened, names[-1])
    own, window = opened.locator("nav [aria-current]").bounding_box(), opened.viewport_size
    assert 0 < own["y"] < window["height"] - own["height"]  # the list has scrolled


def test_cells_without_a_number(show):
    nan, inf = math.nan, math.inf
    a = [[1.0, -inf, -inf, nan, nan, 2.0, -inf, 3.0, 0.5]]
    b = [[1.5, -inf, -1e9, nan, 1.0, MISSING, 4.0, inf, 0.5]]
    opened = show(made(a, b))
    expected = ["-0.5", "0", "0", "0", "NaN", "not computed", "-∞", "-∞", "0"]
    hatched = opened.locator(".matrix").evaluate_all(
        "all => all.map(one => [...one.querySelectorAll('g rect')]"
        ".map(cell => cell.getAttribute('fill').startsWith('url')))"
    )
    for column, difference in enumerate(expected):
        hover(opened, 2, 0, column)
        assert facts(opened)[2][2] == difference
        assert hatched[0][column] == (not math.isfinite(a[0][column]))
        assert hatched[2][column] == (column in (1, 2, 3, 5))
    assert hatched[1] == [False, True, True, True, False, True, False, True, False]
    fills = opened.locator(".matrix").nth(2).locator("g rect")
    nan, zero = (fills.nth(column).get_attribute("fill") for column in (4, 8))
    assert nan != zero


def test_a_large_matrix_is_cut_around_the_largest_difference(show):
    a = torch.zeros(2, 3, 60, 100)
    b = a.clone()
    b[1, 2, 50, 30] = -1
    opened = show(made(a, b))
    text = opened.inner_text("main")
    assert "batch row 1, head 2; rows: 12 to 59 of 60; columns: 6 to 53 of 100" in text
    assert facts(opened) == (50, 30, ["0", "-1", "1"])
    assert opened.locator(".matrix").nth(0).locator("g rect").count() == MOST**2


def test_vectors_a_loss_and_other_shapes(show):
    opened = show(made([1.0, 2.0], [1.0, 5.0], "gradients.bias"))
    assert facts(opened) == (0, 1, ["2", "5", "-3"])
    assert facts(show(made(2.0, 2.5, "loss"))) == (0, 0, ["2", "2.5", "-0.5"])
    opened = show(made(torch.zeros(2, 3), torch.zeros(2, 4)))
    assert "The shapes are 2 × 3 and 2 × 4" in opened.inner_text("main")
    assert opened.locator(".matrix").count() == 0


def test_text_from_outside_is_only_text(show):
    evil = "</script><script>document.title='x'</script><img src=x onerror=alert(1)>"
    report = made(1.0, 2.0, name=evil, titles=(evil, "<!-- B"))
    cause = Cause(evil, evil, evil, False)
    report = Report(report.titles, "float64", report.steps, (cause,), False, (evil,), report.values)
    opened = show(report)
    assert opened.inner_text("h1") == f"{evil} and <!-- B"
    assert opened.locator("img").count() == 0
    data = json.loads(opened.locator("#report").text_content())
    assert data["notes"] == [evil]
    assert data["steps"][0]["verdict"] == "wrong"


def test_it_follows_the_width_and_the_scheme(report, show, shared):
    opened = show(report)
    cell = opened.locator(".matrix").nth(0).locator("g rect").nth(0)
    try:
        light = cell.get_attribute("fill")
        opened.emulate_media(color_scheme="dark")
        opened.wait_for_function(
            "light => document.querySelector('.matrix g rect').getAttribute('fill') !== light",
            arg=light,
        )
        for width, kind in ((390, "stacked"), (1280, "compared")):
            opened.set_viewport_size({"width": width, "height": 860})
            opened.wait_for_selector(f".{kind} .matrix")
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        shared.set_viewport_size({"width": 1280, "height": 860})
        shared.emulate_media(color_scheme="light")


def test_the_command_writes_the_page(tmp_path):
    folder = str(planted.folders(tmp_path, only=("gpt2",))["gpt2"])
    words = "diff", folder, folder, "--html"
    done = command.headway(tmp_path, *words, "report.html")
    assert re.search(r"^report\.html: \d\.\d MB$", done.stdout, re.MULTILINE)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    json.loads(command.headway(tmp_path, *words, "report.html", "--json").stdout)
    error = command.headway(tmp_path, *words, "none/report.html", rc=1).stderr
    assert "none/report.html: No such file or directory" in error
    assert len(error.strip().splitlines()) == 1
