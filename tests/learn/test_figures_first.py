"""The figures of chapters 1 to 5 except `steps`: their numbers, and where these come from."""

import json
import re
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from figures import called, drawn, said
from headway.attention import dropout
from headway.attention.normalizers import softmax, sparsemax
from headway.data.grammar import examples
from headway.ladder.rung import INPUTS, words_and_inputs

pytestmark = pytest.mark.xdist_group("browser")
REPORTS = Path(__file__).parents[2] / "docs" / "lab"
CHAPTERS = resources.files("headway.learn").joinpath("chapters")


def figures_of(chapter, kind):
    """The options of the figures of a kind in a chapter."""
    text = CHAPTERS.joinpath(f"{chapter}.md").read_text("utf-8")
    blocks = re.findall(r"^```figure\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [one for one in map(tomllib.loads, blocks) if one["kind"] == kind]


def number(text):
    return float(text.replace("−", "-").replace("∞", "inf"))


# bottleneck


@pytest.fixture(scope="module")
def pairs():
    [options] = figures_of("01_bottleneck", "bottleneck")
    return options["pairs"]


def test_the_sentences_are_those_of_the_grammar(pairs):
    known = {example.english: example for example in examples(4000, [0, 1, 2, 3], 1)}
    for depth, pair in enumerate(pairs):
        example = known[pair["english"]]
        assert (example.german, example.depth) == (pair["german"], depth)
        assert pair["links"] == " ".join(f"{i}-{j}" for i, j in example.alignment)


def test_the_shares_are_those_of_the_race(pairs):
    report = json.loads((REPORTS / "race" / "report.json").read_text("utf-8"))
    exact = {(row[0], row[1]): int(row[3].partition("%")[0]) for row in report["rows"][1:]}
    for depth, pair in enumerate(pairs):
        of_models = [exact[f"depth {depth}", model] for model in ("bahdanau", "rnn")]
        assert [round(100 * pair["exact"][name]) for name in ("with", "without")] == of_models


def test_the_bars_are_the_shares(page, pairs):
    drawn(page, "bottleneck", {"pairs": pairs})
    shares = page.locator(".bars .fill").evaluate_all(
        "all => all.map(one => one.offsetWidth / one.parentElement.offsetWidth)"
    )
    expected = [pair["exact"][name] for pair in pairs for name in ("with", "without")]
    np.testing.assert_allclose(shares, expected, atol=0.02)


@pytest.mark.parametrize("broken", [False, True])
def test_what_the_vector_must_hold(page, pairs, broken):
    drawn(page, "bottleneck", {"pairs": pairs}, broken=broken)
    page.get_by_role("button", name="three clauses").click()
    slider = page.get_by_label("German words written")
    links = [[int(one) for one in link.split("-")] for link in pairs[3]["links"].split()]
    german = re.findall(r"\w+|[.,]", pairs[3]["german"])
    for written in (0, 7, len(german) - 1, len(german)):
        slider.fill(str(written))
        needed = {english for english, at in links if at >= written}
        line = said(page)
        assert line.get("words and signs that the vector must still hold") == (
            str(len(needed)) if broken else None
        )
        assert line["next German word"].startswith(
            german[written] if written < len(german) else "none"
        )
        drawn_now = page.locator(".translation path.now").count()
        assert drawn_now == sum(at == written for _, at in links)
    assert page.locator(".translation .vector").count() == broken


# dot


def test_dot_products_of_the_words(page):
    drawn(page, "dot", {"query": 1, "key": 0})
    plane = np.array(INPUTS)[:, :2]
    products = page.locator(".bar").evaluate_all("rows => rows.map(row => row.dataset.product)")
    np.testing.assert_allclose([float(x) for x in products], plane @ plane[1], rtol=1e-12)
    line = said(page)
    assert line["dot product"] == "0.55 · 0.43 + 0.87 · 0.15 = 0.367"
    long, product = np.linalg.norm(plane[1]), plane[1] @ plane[0]
    assert line["length of the query × length of the projection"] == (
        f"{long:.3g} · {product / long:.3g} = {product:.3g}"
    )
    cosine = product / long / np.linalg.norm(plane[0])
    assert line["angle"] == f"{np.degrees(np.arccos(cosine)):.0f}°"


def test_an_arrow_is_moved_with_the_keyboard_and_the_mouse(page):
    drawn(page, "dot", {"query": 1, "key": 0})
    page.locator(".handle.key").focus()
    for _ in range(20):
        page.keyboard.press("ArrowDown")
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert said(page)["key “Your”"] == "(−0.57, −0.85)"
    assert said(page)["dot product"] == "0.55 · (−0.57) + 0.87 · (−0.85) = −1.05"
    box = page.locator(".handle.query").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    box = page.locator(".plane").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 145, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert said(page)["query “journey”"] == "(1, 0)"
    page.get_by_label("Sentence").fill("one other")
    inputs = words_and_inputs("one other")[1]
    assert said(page)["query “other”"] == "({}, {})".format(*(f"{x:g}" for x in inputs[1][:2]))


# softmax


def weights(page, kind):
    texts = page.locator(f"[data-kind={kind}] .number").evaluate_all(
        "all => all.map(one => one.dataset.value)"
    )
    return np.array([float(text) for text in texts])


def test_weights_of_a_row_of_scores(page):
    drawn(page, "softmax", {"query": 1})
    x = np.array(INPUTS)
    scores = x @ x[1]
    np.testing.assert_allclose(weights(page, "softmax"), softmax(scores), rtol=1e-12)
    np.testing.assert_allclose(weights(page, "sparsemax"), sparsemax(scores), atol=1e-12)
    assert weights(page, "argmax").tolist() == [0, 1, 0, 0, 0, 0]
    assert number(page.inner_text("[data-sum=exp]")) == pytest.approx(
        np.exp(scores).sum(), rel=0.01
    )
    page.get_by_role("button", name="Add 1 to all").click()
    np.testing.assert_allclose(weights(page, "softmax"), softmax(scores), rtol=1e-9)
    for name in ("Double", "Halve", "Double"):
        page.get_by_role("button", name=f"{name} all").click()
    np.testing.assert_allclose(weights(page, "softmax"), softmax(2 * scores), rtol=1e-9)
    page.get_by_label("−∞").nth(1).check()
    scores[1] = -np.inf
    allowed = np.isfinite(scores)
    np.testing.assert_allclose(weights(page, "softmax"), softmax(2 * scores, allowed), rtol=1e-9)
    expected = sparsemax(2 * scores, allowed)
    np.testing.assert_allclose(weights(page, "sparsemax"), expected, atol=1e-9)
    for _ in range(15):  # the slider ends, the scores do not
        page.get_by_role("button", name="Double all").click()
    assert weights(page, "softmax").max() > 0.99999
    page.get_by_role("button", name="Add 1 to all").click()
    for i in (0, 2, 3, 4, 5):
        page.get_by_label("−∞").nth(i).check()
    for kind in ("softmax", "sparsemax", "argmax"):
        assert not weights(page, kind).any()


def test_scores_divided_by_their_sum(page):
    _, broken = figures_of("03_softmax", "softmax")
    drawn(page, "softmax", broken, broken=True)
    scores = np.array(broken["scores"])
    np.testing.assert_allclose(weights(page, "softmax"), scores / scores.sum())
    assert said(page)["sum of the scores"] == "0.5"  # as the chapter says
    bars = page.locator("[data-kind=softmax] .fill").evaluate_all(
        "all => all.map(one => one.offsetWidth)"
    )
    np.testing.assert_allclose(np.array(bars) / max(bars), np.abs(scores) / 2, atol=0.02)
    page.get_by_label("score of Your").fill("1")
    assert said(page)["sum of the scores"] == "0"


@pytest.mark.parametrize("scores", [[1e4, 1e4 + 1, -1e4], [0.0, -np.inf, 1.0], [-np.inf] * 2])
def test_softmax_and_sparsemax_of_unusual_scores(page, scores):
    allowed = np.isfinite(scores)
    for name, function in (("softmax", softmax), ("sparsemax", sparsemax)):
        result = called(page, "compute", name, scores)
        np.testing.assert_allclose(result, function(np.array(scores), allowed), atol=1e-12)


# spread


def random_scores(size, seed=1):
    """The scores of the figure, with the hash of `headway.attention.dropout`."""

    def normal(*place):
        parts = [np.asarray(part, np.int32) for part in place]
        state = dropout.hashed(seed, np.zeros(1))
        one, other = (
            (dropout.hashes(state, *parts, np.int32([which])) + 2.0**31 + 0.5) / 2**32
            for which in (0, 1)
        )
        return np.sqrt(-2 * np.log(one)) * np.cos(2 * np.pi * other)

    rows, columns, features = np.arange(64), np.arange(16), np.arange(size)
    queries = normal(np.array([0]), rows[:, None], features)
    keys = normal(np.array([1]), columns[:, None], features)
    return queries @ keys.T


@pytest.mark.parametrize("place", [0, 6, 9])
@pytest.mark.parametrize("scale", [False, True])
def test_the_gradient_of_the_softmax(page, place, scale):
    size = 2**place
    scores = random_scores(size)
    drawn(page, "spread", {"show": "weights"}, broken=not scale)
    page.get_by_role("slider").fill(str(place))
    weights = softmax(scores / np.sqrt(size) if scale else scores)
    line = said(page)
    assert line["d_k"] == str(size)
    gradient = (weights * (1 - weights)).sum(-1).mean()
    assert number(line["gradient, sum of w (1 − w)"]) == pytest.approx(gradient, rel=0.006)
    largest = weights.max(-1).mean()
    assert number(line["largest weight, mean of 64 queries"]) == pytest.approx(largest, rel=0.006)
    bars = page.locator(".chart.weights rect").evaluate_all("all => all.map(e => e.dataset.value)")
    np.testing.assert_allclose([float(bar) for bar in bars], weights[0], rtol=1e-9)


def test_the_spread_of_the_scores(page):
    drawn(page, "spread", {"show": "scores"})
    for place in (2, 8):
        page.get_by_role("slider").fill(str(place))
        line = said(page)
        typical = np.sqrt((random_scores(2**place) ** 2).mean())
        assert number(line["typical score"]) == pytest.approx(typical, rel=0.006)
        assert number(line["typical score / √d_k"]) == pytest.approx(1, rel=0.2)
        spread = 2 ** (place / 2)
        for kind, factor in (("raw", 1), ("scaled", 1 / spread)):
            step = factor * spread / 4
            bins, counts = np.unique(
                np.floor(factor * random_scores(2**place) / step), return_counts=True
            )
            bars = page.locator(f".{kind} rect").evaluate_all(
                "all => all.map(bar => ['x', 'height'].map(key => Number(bar.getAttribute(key))))"
            )
            left, height = np.array(sorted(bars)).T
            np.testing.assert_allclose(left, 760 * (bins * step / 64 + 1) / 2, rtol=1e-9)
            np.testing.assert_allclose(height, 110 * counts / counts.max(), rtol=1e-9)
    before = said(page)
    page.get_by_role("button", name="Other random vectors").click()
    assert said(page)["typical score"] != before["typical score"]
