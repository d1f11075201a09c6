"""The numbers of the example that are typed in chapters 1 to 5."""

from importlib import resources

import numpy as np
import pytest

from headway.ladder.rung import run_example, words_and_inputs
from headway.ladder.rungs import LADDER
from headway.learn.measured import report


@pytest.fixture
def chapter():
    """A function that returns the text of a chapter, with single spaces."""
    folder = resources.files("headway.learn").joinpath("chapters")
    return lambda name: " ".join(folder.joinpath(f"{name}.md").read_text("utf-8").split())


def test_similar_words_have_similar_rows():
    _, steps, _ = run_example(LADDER["simplified"])
    assert np.abs(steps["weights"][1] - steps["weights"][2]).max() < 0.005
    np.testing.assert_allclose(steps["scores"], steps["scores"].T)


def test_scores_of_learned_matrices_are_not_symmetric(chapter):
    _, steps, _ = run_example(LADDER["trainable"])
    [words, _] = words_and_inputs()
    here, there = words.index("Your"), words.index("one")
    scores = steps["scores"]
    text = chapter("04_projections")
    assert f"*Your* gives *one* a score of {scores[here, there]:.2f}" in text
    assert f"*one* gives *Your* a score of {scores[there, here]:.2f}" in text
    assert {*scores.argmax(-1)} == {words.index("journey")}
    assert np.linalg.norm(steps["keys"], axis=-1).argmax() == words.index("journey")
    assert f"they have {2 * 768 * 64:,} numbers instead of {768**2:,}" in text


def test_the_scores_of_two_features(chapter):
    _, steps, _ = run_example(LADDER["trainable"])
    scores = steps["scores"]
    text = chapter("05_scale")
    assert f"between {scores.min() - 0.05:.1f} and {scores.max() + 0.05:.1f}" in text
    assert 0.2 < scores.min() < scores.max() < 1.9


def test_the_entropies_without_the_scale(chapter):
    text = chapter("05_scale")
    variants = report("scale")["variants"]
    [without, scaled] = (
        [dict(points) for points in variants[f"d_k 96, rate 1e-2, {name}"]["entropy"].values()]
        for name in ("unscaled", "scaled")
    )
    assert "after 200 steps the entropy is about 0.01" in text
    assert all(0.005 < run[200] < 0.02 for run in without)
    recovered = [next(step for step in run if step > 200 and run[step] > 0.1) for run in without]
    last = [step - 100 for step in recovered]
    assert f"Until step {min(last)} to {max(last)} it stays below 0.1" in text
    assert "at the end the entropy is about 0.2, against 0.6 with the scale" in text
    assert {round(run[3000], 1) for run in without} == {0.2}
    assert np.mean([run[3000] for run in scaled]).round(1) == 0.6
