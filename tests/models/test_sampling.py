"""Tests of sampling the next token."""

import numpy as np
import pytest

from headway.models.sampling import sample

LOGITS = np.array([0.5, 2.0, -1.0, 1.5, 0.0], dtype=np.float32)


def drawn(**options):
    return [sample(LOGITS, seed=4, step=step, **options) for step in range(3000)]


def test_temperature_zero_and_top_one_take_the_most_likely_token():
    assert set(drawn(temperature=0)) == set(drawn(top_k=1)) == {1}


def test_top_k_samples_from_the_k_most_likely_tokens():
    assert set(drawn(top_k=3)) == {0, 1, 3}
    assert set(drawn(top_k=9)) == set(range(5))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature):
    expected = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum()
    frequencies = np.bincount(drawn(temperature=temperature), minlength=5) / 3000
    assert np.abs(frequencies - expected).max() < 5 * 0.5 / np.sqrt(3000)


def test_a_function_of_seed_and_step():
    assert drawn() == drawn()
    assert drawn() != [sample(LOGITS, seed=5, step=step) for step in range(3000)]


def test_refusals():
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        sample(LOGITS, temperature=-1)
    with pytest.raises(ValueError, match="top_k must be >= 1"):
        sample(LOGITS, top_k=0)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="top_p must be > 0"):
            sample(LOGITS, top_p=wrong)


def test_top_p_samples_from_the_most_likely_tokens_that_reach_it():
    share = np.exp(LOGITS) / np.exp(LOGITS).sum()  # .48 .29 .11 .07 .05 in order
    assert share[1] < 0.5 < share[1] + share[3]
    assert set(drawn(top_p=0.4)) == {1}
    assert set(drawn(top_p=0.5)) == {1, 3}
    assert set(drawn(top_p=1.0)) == set(range(5))
    frequencies = np.bincount(drawn(top_p=0.5), minlength=5) / 3000
    assert frequencies[1] == pytest.approx(share[1] / (share[1] + share[3]), abs=0.05)


def test_top_p_applies_after_top_k():
    assert set(drawn(top_k=2, top_p=0.6)) == {1}
