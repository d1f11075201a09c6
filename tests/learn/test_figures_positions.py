"""The figure `positions`: its numbers are those of attention/positions.py and the formula."""

import numpy as np
import pytest

from figures import array, called, drawn, said
from headway import attend
from headway.attention.positions import alibi, relative, rotary, sinusoidal
from headway.ladder.rung import words_and_inputs
from headway.ladder.trainable import BOOK

pytestmark = pytest.mark.xdist_group("browser")
TABLE = np.array([[-0.6, -0.2, 0.4, 0.8, 0.1, -0.3, -0.7]])
QUERY, KEY = [0.9, 0.4, 0.7, 0.5], [0.8, 0.6, -0.5, 0.6]


def context(words, scheme):
    """The context of every word, as the engine computes it."""
    x = words_and_inputs(" ".join(words))[1]
    places = np.arange(len(words))
    if scheme == "added":
        x = x + sinusoidal(places, 4, x)[:, :3]
    queries, keys, values = (x @ BOOK[f"W_{name}"] for name in ("query", "key", "value"))
    bias = None
    if scheme == "alibi":
        bias = alibi(8, places, places)[0]  # the slope of the first of eight heads is 1/2
    if scheme == "relative":
        bias = relative(TABLE, places, places)[0]
    if scheme == "rotary":
        queries, keys = rotary(queries, places), rotary(keys, places)
    return attend(queries, keys, values, bias=bias)


@pytest.mark.parametrize("scheme", ["none", "added", "alibi", "relative", "rotary"])
def test_contexts(page, scheme):
    words = ["the", "old", "dog", "bites", "a", "man"]
    for order in (words, words[::-1]):
        got = called(page, "positions", "contexts", order, scheme)["context"]
        np.testing.assert_allclose(array(got), context(order, scheme), rtol=1e-12)


@pytest.mark.parametrize(
    ("scheme", "is_equal"),
    [("added", False), ("alibi", True), ("relative", False), ("rotary", False)],
)
def test_only_a_signed_distance_distinguishes_a_sentence_and_its_reverse(page, scheme, is_equal):
    drawn(page, "positions", {"text": "dog bites man", "scheme": scheme})
    assert (said(page)["difference"] == "0") == is_equal
    first, last = (context(w.split(), scheme) for w in ("dog bites man", "man bites dog"))
    assert np.allclose(first[0], last[-1], atol=1e-12) == is_equal


def test_without_positions_the_order_does_not_matter(page):
    drawn(page, "positions", {"text": "dog bites man"}, broken=True)
    assert said(page)["difference"] == "0"
    assert page.locator("select").count() == 0
    page.get_by_label("Sentence").fill("the man bites the old dog")
    assert said(page)["difference"] == "0"
    page.get_by_label("Sentence").fill("")  # nothing to show, and no error
    assert page.locator("svg").count() == 0


def test_rotations_and_the_score(page):
    for m, n in ((0, 0), (5, 2), (24, 0)):
        rotated = [rotary(np.array([x]), np.array([at]))[0] for x, at in ((QUERY, m), (KEY, n))]
        got = called(page, "positions", "score", QUERY, KEY, m, n)
        np.testing.assert_allclose(got["query"], rotated[0], rtol=1e-12)
        np.testing.assert_allclose(got["key"], rotated[1], rtol=1e-12)
        np.testing.assert_allclose(got["total"], rotated[0] @ rotated[1], rtol=1e-12)
        np.testing.assert_allclose(sum(got["terms"]), got["total"], rtol=1e-12)


def test_sliding_both_does_not_change_the_score(page):
    drawn(page, "positions", {"view": "rotary", "query": QUERY, "key": KEY})
    before = said(page)
    both = page.get_by_role("slider", name="Slide both")
    both.focus()
    angles = page.locator(".pairs figure").evaluate_all("all => all.map(one => one.dataset.angle)")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    after = said(page)
    assert (before["query at"], after["query at"]) == ("5", "10")
    assert before["score"] == after["score"]
    now = page.locator(".pairs figure").evaluate_all("all => all.map(one => one.dataset.angle)")
    assert all(one != other for one, other in zip(angles, now, strict=True))
    page.get_by_role("slider", name="Distance").focus()
    page.keyboard.press("ArrowRight")
    assert said(page)["score"] != after["score"]
    scores = page.locator("td").evaluate_all("all => all.map(one => Number(one.dataset.value))")
    rotated = rotary(np.array([QUERY, KEY]), np.array([11, 7]))
    np.testing.assert_allclose(scores[-1], rotated[0] @ rotated[1], rtol=1e-12)


def test_without_the_rotation_every_distance_has_the_same_score(page):
    drawn(page, "positions", {"view": "rotary", "query": QUERY, "key": KEY}, broken=True)
    before = said(page)["score"]
    page.get_by_role("slider", name="Distance").focus()
    page.keyboard.press("End")
    assert said(page)["distance"] == "24"
    assert said(page)["score"] == before == f"{np.dot(QUERY, KEY):.3g}"
