"""The ladder on the page: the numbers, the words and the equations of every rung."""

import re
from importlib import resources

import numpy as np
import pytest

from headway.explore import export
from headway.explore.tracers import LadderTracer, TraceRequest
from headway.ladder.differences import what_differs
from headway.ladder.rung import SENTENCE, run_example, words_and_inputs
from headway.ladder.rungs import LADDER
from headway.ladder.why import WHY
from pages import opened, settled, table

pytestmark = pytest.mark.xdist_group("browser")
STATIC = resources.files("headway.explore").joinpath("static")


def written(folder, text=SENTENCE):
    """The address of a page with the ladder on a text."""
    (folder / "ladder.html").write_text(export.page(*LadderTracer().trace(TraceRequest(text))))
    return (folder / "ladder.html").as_uri()


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("ladder"))


def figures(page):
    """The matrices on the page: step, head, whether it is outlined, the colors and the numbers."""
    return page.locator(".rung figure").evaluate_all(
        """all => all.map(figure => {
            const head = figure.closest('.rung-head')
            return {
                step: figure.dataset.step,
                head: head ? [...document.querySelectorAll('.rung-head')].indexOf(head) : 0,
                isNew: Boolean(figure.closest('.new')),
                fills: [...figure.querySelectorAll('.matrix > g > rect')].map(one => one.getAttribute('fill')),
                numbers: [...figure.querySelectorAll('.matrix > g > text')].map(one => Number(one.textContent.replace('−', '-'))),
                legend: figure.querySelector('figcaption').textContent,
            }
        })"""  # noqa: E501
    )


def expected(name, step, head):
    """The matrix of a step as `run_example` and the example's parameters have it."""
    rung = LADDER[name]
    if step == "x":
        return words_and_inputs()[1]
    _, steps, context = run_example(rung)
    parameters = rung.example().parameters
    if step == "result":
        return context
    matrix = parameters.get(step, steps.get(step))
    if matrix is None:
        matrix = steps[f"heads.{head}.{step}"]
    matrices = np.asarray(matrix).reshape(-1, *np.shape(matrix)[-2:])
    return matrices[head % len(matrices)]


@pytest.mark.parametrize("name", LADDER)
def test_the_numbers_are_those_of_the_example(page, ladder, name):
    opened(page, f"{ladder}#rung={name}")
    shown = figures(page)
    steps = {re.sub(r"heads\.\d+\.", "", step) for step in run_example(LADDER[name])[1]}
    assert steps | {*LADDER[name].example().parameters} <= {one["step"] for one in shown}
    for one in shown:
        matrix = expected(name, one["step"], one["head"])
        numbers = matrix[np.isfinite(matrix)]
        if one["step"] in ("weights", "dropped") and LADDER[name].causal:
            numbers = matrix[np.tril_indices(len(matrix))]
        np.testing.assert_allclose(one["numbers"], numbers, rtol=0.05, err_msg=str(one))
        if "±" in one["legend"]:
            end = float(one["legend"].partition("±")[2])
            assert end == pytest.approx(np.abs(numbers).max(), rel=0.006)


NEW = {
    "fixed": [],
    "simplified": ["scores"],
    "trainable": ["W_query", "W_key", "W_value", "queries", "keys", "values", "scaled"],
    "causal": ["masked"],
    "dropout": ["dropped"],
    "multihead": ["W_output", "output"],
    "fused": ["W_qkv"],
    "tiled": [],
}


def test_what_is_outlined_is_new(page, ladder):
    for name, new in NEW.items():
        opened(page, f"{ladder}#rung={name}")
        assert [one["step"] for one in figures(page) if one["isNew"]] == new
    opened(page, f"{ladder}#rung=stacked")
    assert {one["head"] for one in figures(page) if one["isNew"] and one["step"] != "result"} == {1}
    opened(page, f"{ladder}#rung=fused")
    assert page.inner_text(".gone") == "No longer: W_query, W_key, W_value"
    opened(page, f"{ladder}#rung=tiled")
    assert page.inner_text(".gone") == "No longer: scores, scaled, masked, weights"


def test_what_changed(page, ladder):
    opened(page, f"{ladder}#rung=causal&diff=1")
    shown = {one["step"]: one for one in figures(page)}
    for step in ("x", "W_query", "queries", "scores", "scaled"):
        assert shown[step]["legend"] == "no change"
    change = expected("causal", "weights", 0) - expected("trainable", "weights", 0)
    np.testing.assert_allclose(shown["weights"]["numbers"], change.ravel(), rtol=0.06, atol=1e-9)
    for fill, number in zip(shown["weights"]["fills"], change.ravel(), strict=True):
        if abs(number) > 0.05:
            assert (int(fill[1:3], 16) > int(fill[5:7], 16)) == (number > 0)
    assert shown["masked"]["isNew"]
    opened(page, f"{ladder}#rung=fused&diff=1")
    legends = {one["step"]: one["legend"] for one in figures(page)}
    assert legends.pop("W_qkv") == "±0.93"
    assert {*legends.values()} == {"no change"}
    opened(page, f"{ladder}#rung=dropout&diff=1")
    page.get_by_role("button", name="what changed").click()
    settled(page)
    assert all(one["legend"] != "no change" for one in figures(page))


def test_equal_rungs_say_what_differs(page, ladder):
    for name, rung in LADDER.items():
        opened(page, f"{ladder}#rung={name}")
        assert page.locator(".equal").count() == (rung.equals is not None)
        if not rung.equals:
            continue
        differs = what_differs(rung)
        assert f"equals that of {rung.equals}" in page.inner_text(".equal")
        largest = float(re.search(r"largest difference is (\S+)\.", page.inner_text(".equal"))[1])
        assert largest < 1e-12
        rows = page.locator(".equal tbody tr").all_inner_texts()
        both = (rung.equals, name)
        assert [row.split("\t")[1:] for row in rows] == [
            [str(differs[count][one]) for one in both] for count in ("products", "scores")
        ]
        tables = page.locator(".rung-head table")
        assert tables.count() == len(differs["running"])
        for at, blocks in enumerate(differs["running"]):
            rows = tables.nth(at).locator("tbody tr").all_inner_texts()
            for row, block in zip(rows, blocks, strict=True):
                numbers = [block["keys"], block["largest"], block["total"]]
                numbers += block["context"] + block["result"]
                shown = [float(number.replace("−", "-")) for number in row.split()]
                np.testing.assert_allclose(shown, numbers, rtol=0.006)


def test_the_explanation_needs_no_scrolling(page, ladder):
    page.set_viewport_size({"width": 1280, "height": 800})
    for name, rung in LADDER.items():
        opened(page, f"{ladder}#rung={name}")
        words = page.inner_text("aside .words")
        assert rung.idea[1:] in words
        why = WHY[name]
        for text in (why.problem, why.without, why.measured):
            assert text.replace("`", "") in words
        box = page.locator("aside .words").bounding_box()
        assert box["y"] + box["height"] <= page.locator("footer").bounding_box()["y"], name
        assert page.evaluate("document.documentElement.scrollWidth") == 1280
    opened(page, ladder)
    assert page.inner_text("aside h2") == "1. fixed"
    assert "seed 123" in page.inner_text("aside") or "no parameters" in page.inner_text("aside")


def test_arrow_keys_step_through_the_rungs(page, ladder):
    opened(page, ladder)
    names = [*LADDER]
    for name in names[1:] + names[-1:]:  # at the end it stays
        page.keyboard.press("ArrowRight")
        settled(page)
        assert page.inner_text("aside h2").endswith(f". {name}")
        assert page.inner_text(".rungs [aria-current] h3").endswith(name)
    page.keyboard.press("ArrowLeft")
    settled(page)
    assert page.inner_text("aside h2") == "8. fused"
    page.click(".rung figure[data-step=weights] h3 a")
    settled(page)
    assert page.inner_text(".crumbs [aria-current=page]") == "weights"
    page.keyboard.press("ArrowLeft")  # now a step
    settled(page)
    assert "step=masked" in page.url


def test_a_long_text_on_a_narrow_screen(page, tmp_path):
    page.set_viewport_size({"width": 390, "height": 844})
    address = written(tmp_path, " ".join(f"word{i}" for i in range(32)))
    for name in ("dropout", "tiled"):
        opened(page, f"{address}#rung={name}")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator(".rung figure").count() > 5


def test_a_step_of_a_rung_opens(page, ladder):
    tensors, _ = LadderTracer().trace(TraceRequest(SENTENCE))
    opened(page, f"{ladder}#rung=stacked&head=1&step=weights&table=1")
    assert np.array_equal(table(page), tensors["ladder.stacked.heads.1.weights"][0])
    opened(page, f"{ladder}#rung=tiled&head=1&step=weights&table=1")
    np.testing.assert_allclose(table(page), tensors["ladder.fused.weights"][1], atol=1e-12)
    opened(page, f"{ladder}#rung=fixed&head=0&step=scores&table=1")
    assert np.array_equal(table(page), tensors["ladder.fixed.scores"])


def letters(text):
    """The letters and digits of an equation; signs that are drawn otherwise are left out."""
    text = re.sub(r"\bsqrt\b|\bsum(?=\b|_)|\binf\b", "", text)
    return [letter for letter in text if letter.isalnum()]


def equations():
    """Every equation of the rungs and of the scripts."""
    for rung in LADDER.values():
        yield rung.equation
    for file in STATIC.iterdir():
        if file.name.endswith(".js"):
            for text in re.findall(r'equation(?::| =) ["`](.+?)["`]', file.read_text("utf-8")):
                yield re.sub(r"\$\{.*?\}", "name", text)


def drawn(page, texts):
    """Draw equations on the page, one after another."""
    page.evaluate(
        """async texts => {
            const { equation } = await import('explore/math.js')
            document.body.replaceChildren(...texts.map(equation))
        }""",
        texts,
    )
    return page.locator(".equation").all()


def test_equations_are_mathml(page, ladder):
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, ladder)
    assert page.locator("aside .equation math").count() > 0
    texts = [*equations()]
    assert len(texts) > 20
    for text, element in zip(texts, drawn(page, texts), strict=True):
        assert element.get_attribute("aria-label") == text
        assert letters(element.text_content()) == letters(text)
        assert not re.search(r"[_^/'√]|-", element.text_content()), text
        assert element.evaluate("e => e.scrollWidth <= e.clientWidth"), text


def test_structure_of_equations(page, ladder):
    opened(page, ladder)
    cases = {
        "a / (1 - p)": "<mfrac><mrow><mi>a</mi></mrow><mrow><mn>1</mn><mo>−</mo><mi>p</mi></mrow></mfrac>",  # noqa: E501
        "W_query": "<msub><mi>W</mi><mi>query</mi></msub>",
        "K^T": "<msup><mi>K</mi><mrow><mi>T</mi></mrow></msup>",
        "sqrt(d_k)": "<msqrt><mrow><msub><mi>d</mi><mi>k</mi></msub></mrow></msqrt>",
        "m'": "<msup><mi>m</mi><mo>′</mo></msup>",
    }
    for element, html in zip(drawn(page, [*cases]), cases.values(), strict=True):
        inside = element.locator("math").inner_html()
        assert re.sub(r'(<mo) [^>]*|(<\w+) xmlns="[^"]*"', r"\1\2", inside) == html
    # Strings from a file need not be equations: they must neither hang nor become elements.
    for text in (")", "((((", "a /", "x^", "_", "|", "2^-", "<img src=x onerror=fired()>", ""):
        assert drawn(page, [text])[0].locator("img").count() == 0
