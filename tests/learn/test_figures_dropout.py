"""The figure `dropout` drops the cells that Headway drops."""

import numpy as np
import pytest

from figures import drawn, matrix, said
from headway.attention.spec import Spec
from headway.ladder.rung import words_and_inputs
from headway.ladder.rungs import LADDER
from headway.ladder.trainable import BOOK
from headway.tracing import trace

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "the fox bit the old dog"


def dropped(rate, seed):
    """The weights after dropout, as the ladder computes them."""
    with trace() as steps:
        LADDER["dropout"](words_and_inputs(TEXT)[1], BOOK, Spec(dropout=rate, seed=seed))
    return steps["dropped"].reshape(6, 6)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_cells_are_those_of_the_ladder(page, rate):
    options = {"text": TEXT, "rate": rate, "seed": 5, "draws": 20}
    mean = np.mean([dropped(rate, seed) for seed in range(20)], axis=0)
    for broken, scale in (False, 1), (True, 1 - rate):
        drawn(page, "dropout", options, broken=broken)
        shown = matrix(page, "[data-matrix=dropped] .matrix")
        np.testing.assert_allclose(shown, scale * dropped(rate, 5), rtol=1e-12)
        shown = matrix(page, "[data-matrix=mean] .matrix")
        np.testing.assert_allclose(shown, scale * mean, rtol=1e-12, atol=1e-15)


def test_the_controls(page):
    drawn(page, "dropout", {"text": TEXT, "rate": 0.5, "seed": 5, "draws": 1})
    page.get_by_role("button", name="draw again").press("Enter")
    page.get_by_label("dropout rate").press("ArrowRight")
    np.testing.assert_allclose(matrix(page, "[data-matrix=dropped] .matrix"), dropped(0.6, 6))
    assert said(page)["this draw keeps"] == f"{np.count_nonzero(dropped(0.6, 6))} of 21 weights"
    page.get_by_label("draws in the mean").press("End")
    assert page.inner_text("[data-matrix=mean] h3") == "mean over 1000 draws 6 × 6"
    page.locator("[data-matrix=dropped] .matrix").focus()
    for key in ("Down", "Down", "Right", "Right"):
        page.keyboard.press(f"Arrow{key}")
    masked = {"query": "fox", "key": "bit", "dropped": "0 (masked)"}
    assert said(page) == masked
    page.get_by_label("Sentence").fill("one")
    assert matrix(page, "[data-matrix=weights] .matrix") == [[1]]
    page.get_by_label("Sentence").fill(" ")
    assert "Type at least one word." in page.inner_text("main")
