"""The figure `steps`: its numbers are those of the ladder, and follow what the reader types."""

import numpy as np
import pytest

from figures import called, drawn, matrix, said
from headway.ladder.rung import SENTENCE, run_example, words_and_inputs
from headway.ladder.rungs import LADDER
from headway.ladder.trainable import BOOK

pytestmark = pytest.mark.xdist_group("browser")
ALL = [*BOOK, "queries", "keys", "values", "scores", "scaled", "masked", "weights", "context"]
TEXT = "Your zürich naïve ΣΊΣΥΦΟΣ 𝕏-ray İstanbul 你好 step"


def shown(page, name):
    """The matrix of a step with all its digits; masked cells are 0."""
    return matrix(page, f"[data-step={name}] .matrix")


def expected(rung, name, text=SENTENCE):
    """The matrix of a step as the ladder computes it; masked cells are 0."""
    if name == "x":
        return words_and_inputs(text)[1]
    if name in BOOK:
        return BOOK[name]
    _, steps, _ = run_example(LADDER[rung], text)
    matrix = steps[name].reshape(steps[name].shape[-2:])
    return np.where(np.isfinite(matrix), matrix, 0)


@pytest.mark.parametrize(
    ("rung", "steps"),
    [
        ("simplified", ["x", "scores", "weights", "context"]),
        ("trainable", [name for name in ALL if name != "masked"]),
        ("causal", ALL),
    ],
)
def test_the_numbers_are_those_of_the_ladder(page, rung, steps):
    drawn(page, "steps", {"rung": rung, "steps": steps, "text": TEXT})
    for name in steps:
        np.testing.assert_allclose(shown(page, name), expected(rung, name, TEXT), rtol=1e-12)


def test_words_have_the_same_features_in_python_and_on_the_page(page):
    words, inputs = words_and_inputs(TEXT)
    assert called(page, "compute", "wordsOf", TEXT) == words
    drawn(page, "steps", {"steps": ["x"], "text": TEXT})
    assert np.array_equal(shown(page, "x"), inputs)


def test_a_sentence_that_is_typed_is_used(page):
    drawn(page, "steps", {"rung": "simplified", "steps": ["x", "scores"]})
    field = page.get_by_label("Sentence")
    field.fill("the dog bit the fox")
    scores = expected("simplified", "scores", "the dog bit the fox")
    np.testing.assert_allclose(shown(page, "scores"), scores, rtol=1e-12)
    field.fill(" ".join("abcdefghijkl"))
    assert len(shown(page, "scores")) == 10
    assert "first 10 words" in page.inner_text("[role=status]")
    field.fill(" ")
    assert "at least one word" in page.inner_text("[role=status]")


def test_a_number_is_changed_with_the_keyboard(page):
    drawn(page, "steps", {"rung": "trainable", "steps": ["x", "W_query", "scores"]})
    page.locator("[data-step=x] .matrix").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):  # the first enters the matrix
        page.keyboard.press(key)
    page.keyboard.type("-2.5")
    x = words_and_inputs()[1]
    x[1, 1] = -2.5
    scores = (x @ BOOK["W_query"]) @ (x @ BOOK["W_key"]).T
    np.testing.assert_allclose(shown(page, "scores"), scores, rtol=1e-12)  # while it is typed
    page.keyboard.press("Enter")
    np.testing.assert_array_equal(shown(page, "x"), x)
    for key in ("ArrowRight", "Enter"):  # the focus is still there
        page.keyboard.press(key)
    page.keyboard.type("x")  # no number: nothing changes
    page.keyboard.press("Escape")
    np.testing.assert_array_equal(shown(page, "x"), x)
    page.locator("[data-step=W_query] .matrix").click(position={"x": 60, "y": 40})
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    assert shown(page, "W_query")[1][1] == 7


def softmax(scores, axis=-1):
    powers = np.exp(scores - scores.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


FAULTS = {
    "scale": lambda s: softmax(s["scores"]),
    "softmax-axis": lambda s: softmax(s["scaled"], 0),
    "projections": lambda s: softmax(s["x"] @ s["x"].T / 3**0.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_figure_shows_the_fault(page, fault):
    options = {"rung": "trainable", "steps": ["scores", "scaled", "weights"], "remove": fault}
    _, steps, _ = run_example(LADDER["trainable"])
    weights = FAULTS[fault]({"x": words_and_inputs()[1], **steps})
    drawn(page, "steps", options, broken=True)
    np.testing.assert_allclose(shown(page, "weights"), weights, rtol=1e-12)
    assert page.locator("[data-step=weights] .changed").count() == 1
    assert page.locator("[data-step=scores] .changed").count() == (fault == "projections")


def test_without_the_mask_the_causal_figure_is_the_trainable_rung(page):
    drawn(page, "steps", {"steps": ["masked", "weights"], "remove": "mask"}, broken=True)
    np.testing.assert_allclose(shown(page, "weights"), expected("trainable", "weights"), rtol=1e-12)


def test_pointing_at_a_score_says_how_it_is_computed(page):
    drawn(page, "steps", {"rung": "simplified", "steps": ["scores"], "products": ["scores"]})
    page.locator("[data-step=scores] .result .matrix").hover(position={"x": 50, "y": 10})
    line = said(page)
    assert (line["query"], line["key"]) == ("Your", "journey")
    assert line["scores"] == "0.43 · 0.55 + 0.15 · 0.87 + 0.89 · 0.66 = 0.954"
    assert page.locator("[data-step=scores] .above .lit[visibility=visible]").count() == 1


def test_the_keyboard_says_how_a_number_is_computed(page):
    drawn(page, "steps", {"rung": "fixed", "steps": ["weights", "x", "context"]})
    page.locator("[data-step=context] .matrix").focus()
    page.keyboard.press("ArrowDown")
    weights, x = expected("fixed", "weights"), expected("fixed", "x")
    assert said(page)["context"].startswith(f"{weights[0, 0]:.3g} · {x[0, 0]:.3g} + ")
    assert page.locator("[data-step=weights] .lit[visibility=visible]").count() == 1
    assert not page.locator("[data-step=context] .pickable").count()  # to point at, not to change


def test_a_factor_of_a_product_is_changed(page):
    drawn(page, "steps", {"rung": "fixed", "steps": ["context"], "products": ["context"]})
    page.locator("[data-step=context] .above .matrix").click(position={"x": 74 + 10, "y": 10})
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    x = words_and_inputs()[1]
    x[0, 0] = 5
    _, steps, _ = run_example(LADDER["fixed"])
    result = "[data-step=context] .result .matrix > g > text"
    numbers = page.locator(result).evaluate_all("all => all.map(one => one.dataset.value)")
    expected = steps["weights"] @ x
    np.testing.assert_allclose([float(one) for one in numbers], expected.ravel(), rtol=1e-12)


def test_equal_weights_give_every_token_the_same_context(page):
    options = {"rung": "fixed", "steps": ["weights", "context"], "remove": "difference"}
    drawn(page, "steps", options)
    _, steps, _ = run_example(LADDER["fixed"])
    np.testing.assert_allclose(shown(page, "weights"), steps["weights"], rtol=1e-12)
    drawn(page, "steps", options, broken=True)
    mean = words_and_inputs()[1].mean(0)
    np.testing.assert_allclose(shown(page, "context"), np.tile(mean, (6, 1)), rtol=1e-12)


def test_without_the_content_the_simplified_rung_is_the_fixed_one(page):
    options = {"rung": "simplified", "steps": ["scores", "weights"], "remove": "content"}
    drawn(page, "steps", options, broken=True)
    _, steps, _ = run_example(LADDER["fixed"])
    for name in ("scores", "weights"):
        np.testing.assert_allclose(shown(page, name), steps[name], rtol=1e-12)
