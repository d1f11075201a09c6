"""The figure `cache`: its counts and weights are those of the formula, run step by step."""

import numpy as np
import pytest

from figures import called, drawn, said
from headway import attend, trace
from headway.attention.positions import rotary
from headway.ladder.causal import RUNG
from headway.ladder.rung import SENTENCE, words_and_inputs
from headway.ladder.trainable import BOOK

pytestmark = pytest.mark.xdist_group("browser")
WORDS, X = words_and_inputs()


def counts(cached):
    """Scores of allowed cells and projected vectors of each step, counted while the rung runs."""
    steps, state = [], None
    for t in range(1, len(X) + 1):
        with trace() as traced:
            if cached:
                _, state = RUNG.step(X[t - 1 : t], BOOK, state)
            else:
                RUNG(X[:t], BOOK)
        scores = np.isfinite(traced["masked"]).sum()
        steps.append((scores, 3 * traced["queries"].shape[-2]))
    return np.array(steps)


@pytest.mark.parametrize("cached", [True, False])
def test_counts(page, cached):
    steps = counts(cached)
    for t in range(1, len(X) + 1):
        got = called(page, "cache", "work", t, cached)
        assert [got["scores"], got["vectors"]] == steps[t - 1].tolist()
        assert [got["allScores"], got["allVectors"]] == steps[:t].sum(0).tolist()
        assert got["kept"] == (2 * t if cached else 0)


def test_the_cells_of_a_step(page):
    for broken in (False, True):
        drawn(page, "cache", broken=broken)
        page.get_by_role("slider").focus()
        page.keyboard.press("End")
        kinds = page.locator("svg.matrix.steps-grid rect").evaluate_all(
            "all => all.map(one => one.getAttribute('class'))"
        )
        many = len(WORDS)
        assert kinds.count("now") == many
        assert kinds.count("again" if broken else "before") == many * (many - 1) // 2
        computed = sum(kind in ("now", "again") for kind in kinds)
        assert said(page)["scores in this step"] == str(computed)
        assert computed == called(page, "cache", "work", many, not broken)["scores"]


def test_the_keys_and_values_that_are_kept(page):
    drawn(page, "cache")
    _, state = RUNG.step(X[:4], BOOK, None)
    for name, kept in zip(("keys", "values"), state[0], strict=True):
        numbers = page.locator(f"[data-matrix={name}] text[data-value]").evaluate_all(
            "all => all.map(one => Number(one.dataset.value))"
        )
        np.testing.assert_allclose(numbers, kept.ravel(), rtol=1e-12)
    page.locator("[data-matrix=values] .matrix").focus()
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    later = {"row": "one", "column": "0", "values": "not computed yet"}
    assert said(page) == later


def rotated(tokens, positions):
    """The context of the newest token, whose keys were rotated by these positions."""
    queries, keys, values = (X[:tokens] @ BOOK[f"W_{name}"] for name in ("query", "key", "value"))
    last = rotary(queries[-1:], positions[-1:])
    return attend(last, rotary(keys, positions), values)


def test_a_cache_that_counts_from_zero_has_no_positions(page):
    for tokens in range(1, len(X) + 1):
        right = rotated(tokens, np.arange(tokens))
        wrong = rotated(tokens, np.zeros(tokens, int))
        for broken in (False, True):
            drawn(page, "cache", {"view": "position"}, broken=broken)
            page.evaluate("([step]) => { figure.state.step = step; figure.redraw() }", [tokens])
            numbers = page.locator("[data-matrix=context] text[data-value]").evaluate_all(
                "all => all.map(one => Number(one.dataset.value))"
            )
            expected = [right, wrong if broken else right]
            np.testing.assert_allclose(numbers, np.ravel(expected), rtol=1e-12)
            difference = said(page)["largest difference of the context"]
            assert (difference == "0") == (not broken or tokens == 1)


def test_the_text_of_the_figure_is_the_book(page):
    assert " ".join(WORDS) == SENTENCE
    drawn(page, "cache")
    labels = page.locator("svg.matrix.steps-grid text").all_text_contents()
    assert labels == WORDS


def test_a_sentence_has_as_many_steps_as_words(page):
    drawn(page, "cache")
    page.get_by_label("Sentence").fill("one step")
    assert said(page)["step"] == "2"
    page.get_by_label("Sentence").fill("the old dog chased the quick fox")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("End")
    assert said(page)["scores in this step"] == "7"
    page.get_by_label("Sentence").fill("")
    assert page.locator("svg").count() == 0
