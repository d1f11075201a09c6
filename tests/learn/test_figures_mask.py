"""The figures of chapter 6: the recorded leak, and two ways to mask."""

import json
from pathlib import Path

import numpy as np
import pytest

from figures import drawn, matrix, options, said
from headway.lab.climb import STEPS
from headway.ladder.causal import mask_then_renormalise
from headway.ladder.rung import words_and_inputs
from headway.ladder.trainable import BOOK
from headway.learn.guide import CHAPTERS, RECORDED

browser = pytest.mark.xdist_group("browser")
LEAK = json.loads((RECORDED / "leak.json").read_text())
CLIMB = json.loads((Path(__file__).parents[2] / "docs/lab/climb/report.json").read_text())


def ways(page):
    """The weights of both ways to mask."""
    figures = page.locator("[data-way]").evaluate_all("all => all.map(one => one.dataset.way)")
    return [np.array(matrix(page, f"[data-way='{name}'] .matrix")) for name in figures]


@browser
def test_two_ways_to_mask(page):
    (figure,) = options("06_mask", "masking")
    _, x = words_and_inputs()
    queries, keys = ((x @ BOOK[name])[None] for name in ("W_query", "W_key"))
    right = mask_then_renormalise(queries, keys)[0]
    scores = (queries @ keys.mT)[0] / 2**0.5
    full = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    row = figure["query"]
    others = np.arange(len(x)) != row  # the score that the slider changes is rounded
    for broken, expected in (False, right), (True, np.tril(full)):
        drawn(page, "masking", figure, broken=broken)
        before, after = ways(page)
        np.testing.assert_allclose(before, right, rtol=1e-9)
        np.testing.assert_allclose(after[others], expected[others], rtol=1e-9)
        page.locator("input[type=range]").press("End")
        moved = ways(page)[1]
        np.testing.assert_array_equal(ways(page)[0], before)
        assert np.allclose(moved, after) == (not broken)
    assert moved[row].sum() < 0.01 < after[row].sum()


@browser
def test_the_leak_is_drawn(page):
    for broken, name in (False, "causal"), (True, "trainable, no mask"):
        drawn(page, "leak", {"recorded": LEAK}, broken=broken)
        np.testing.assert_array_equal(matrix(page, ".matrix"), LEAK[name])
    (told,) = said(page).values()
    assert told == "0.994 to 1"
    outlined = page.locator(".matrix").first.evaluate(
        "svg => [...svg.querySelectorAll('g > rect')].map(cell => cell.matches('.target'))"
    )
    size = len(LEAK["text"])
    assert np.array_equal(np.reshape(outlined, (size, size)), np.eye(size, k=1))


def test_what_the_chapter_says_about_the_leak():
    causal, leaking = (np.array(LEAK[name]) for name in ("causal", "trainable, no mask"))
    assert np.array_equal(causal, np.tril(causal))
    assert np.diagonal(leaking, 1).min() > 0.99
    assert LEAK["written"]["a"] == "a" * len(LEAK["written"]["a"])
    chapter = (CHAPTERS / "06_mask.md").read_text()
    assert f"after {STEPS['quick']:,} steps" in chapter
    variants = {one["name"]: one["runs"] for one in CLIMB["variants"]}
    assert all(not run["sample"].strip() for run in variants["trainable, no mask"])
    sample = chapter.split("causal:   ")[1].split(" ...")[0]
    assert sample in variants["causal"][0]["sample"]
