"""The figures of chapter 8: several heads, and one head with the same numbers."""

import numpy as np
import pytest

from figures import drawn, matrix, options, said
from headway.ladder.rungs import LADDER

pytestmark = pytest.mark.xdist_group("browser")
MATRICES = ("W_query", "W_key", "W_value")
FIGURES = options("08_heads", "heads")


def context(figure, *, split):
    """The context of the words that ask, as the ladder computes it."""
    parts = {name: [head[name] for head in figure["heads"]] for name in MATRICES}
    if split:
        rows = LADDER["stacked"](
            np.array(figure["x"], float),
            {name: np.array(part, float) for name, part in parts.items()},
            heads=len(figure["heads"]),
        )
    else:
        joined = {name: np.concatenate(part, axis=1).astype(float) for name, part in parts.items()}
        rows = LADDER["causal"](np.array(figure["x"], float), joined)
    words = figure["words"].split()
    return rows[[words.index(word) for word in figure["asking"]]]


@pytest.mark.parametrize("figure", FIGURES)
def test_the_numbers_are_those_of_the_ladder(page, figure):
    for broken in False, True:
        drawn(page, "heads", figure, broken=broken)
        shown = matrix(page, "[data-matrix=context] .matrix")
        np.testing.assert_allclose(shown, context(figure, split=not broken), rtol=1e-9, atol=1e-12)


def test_what_the_chapter_says():
    who, did = (context(FIGURES[1], split=split) for split in (True, False))
    np.testing.assert_allclose(who, [[-1, 1], [1, -1]], atol=0.01)
    np.testing.assert_allclose(did, 0, atol=1e-12)
    np.testing.assert_allclose(
        context(FIGURES[0], split=True), [[1, 1], [-1, -1], [-1, -1], [1, 1]], atol=0.01
    )
    np.testing.assert_allclose(
        context(FIGURES[0], split=False),
        np.array([[1, 1], [-1, -1], [-1, -1], [1, 1]]) / 2,
        atol=0.01,
    )


def test_lines_matrix_and_a_number_that_is_changed(page):
    drawn(page, "heads", FIGURES[0])
    assert page.locator(".lines").count() == 2
    page.get_by_role("button", name="Matrix").press("Enter")
    assert page.locator(".lines").count() == 0
    weights = np.array(matrix(page, "[data-matrix='who is meant?'] .matrix"))
    assert weights[9].argmax() == 2  # him, dog
    assert said(page)["“him”, who is meant?"] == "dog 0.998"
    page.locator("[data-matrix=x] .matrix").focus()
    page.keyboard.press("ArrowUp")  # the last row, from below
    for _ in range(9):
        page.keyboard.press("ArrowDown")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_label("x, him, for whom").fill("-1")
    assert said(page)["“him”, who is meant?"] == "fox 0.998"
    page.keyboard.press("Enter")
    assert matrix(page, "[data-matrix=x] .matrix")[9][5] == -1
