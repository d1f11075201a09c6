"""Tests of sampling the next token."""

import jax
import numpy as np
import pytest
import torch

from headway.models import sampling
from headway.models.sampling import Sampling, sampled, seeds_of, tokens_of

LOGITS = np.array([0.5, 2.0, -1.0, 1.5, 0.0], dtype=np.float32)


def drawn(seed=4, **options):
    how, prompt_seeds = Sampling(seed=seed, **options), seeds_of([[7]])
    return [int(sampled(LOGITS[None], prompt_seeds, step, how)[0][0]) for step in range(3000)]


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
    assert drawn() != drawn(seed=5)


def test_refusals():
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be >= 0"):
            Sampling(temperature=wrong)
    with pytest.raises(ValueError, match="top_k must be >= 1"):
        Sampling(top_k=0)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="top_p must be > 0"):
            Sampling(top_p=wrong)


def test_top_p_samples_from_the_most_likely_tokens_that_reach_it():
    share = np.exp(LOGITS) / np.exp(LOGITS).sum()  # .48 .29 .11 .07 .05 in order
    assert share[1] < 0.5 < share[1] + share[3]
    assert set(drawn(top_p=0.4)) == {1}
    assert set(drawn(top_p=0.5)) == {1, 3}
    assert set(drawn(top_p=1.0)) == set(range(5))
    frequencies = np.bincount(drawn(top_p=0.5), minlength=5) / 3000
    assert frequencies[1] == pytest.approx(share[1] / (share[1] + share[3]), abs=0.05)


def test_top_p_needs_no_more_tokens_once_it_is_reached():
    logits = np.log(np.array([[0.25, 0.5, 0.125, 0.125]], dtype=np.float32))
    assert (np.exp(logits - logits.max()) == [[0.5, 1, 0.25, 0.25]]).all()  # exact
    for top_p, expected in ((0.5, {1}), (0.75, {0, 1})):
        how, prompt_seeds = Sampling(top_p=top_p), seeds_of([[7]])
        for candidates in (len(expected), 4):
            results = [sampled(logits, prompt_seeds, n, how, candidates) for n in range(50)]
            assert {int(tokens[0]) for tokens, _ in results} == expected
            assert {int(status) for _, status in results} == {sampling.OK}


def test_top_p_applies_after_top_k():
    assert set(drawn(top_k=2, top_p=0.6)) == {1}


def test_top_k_and_top_p_need_no_sorted_vocabulary_and_choose_as_if_it_were():
    """Against a separate implementation that sorts."""
    generator = np.random.default_rng(0)
    for trial in range(200):
        logits = generator.normal(size=(3, 500)).astype(np.float32) * generator.choice([0.1, 1, 5])
        top_k, top_p = generator.choice([None, 1, 7, 300]), generator.choice([None, 0.3, 0.99])
        how = Sampling(0.7, None if top_k is None else int(top_k), top_p, seed=trial)
        prompt_seeds = np.arange(3, dtype=np.int32)

        def sample(candidates, logits=logits, how=how, prompt_seeds=prompt_seeds):
            return sampled(logits, prompt_seeds, 5, how, candidates)

        chosen = tokens_of(sample, 500, candidates=16)
        noise = sampling.gumbel((trial, 5), prompt_seeds[:, None], np.arange(500, dtype=np.int32))
        for row in range(3):
            order = np.argsort(-logits[row], kind="stable")[: top_k or 500]
            probabilities = np.exp(logits[row, order].astype(np.float64) / 0.7)
            probabilities /= probabilities.sum()
            before = np.cumsum(probabilities) - probabilities
            allowed = order[before < (top_p or 1)]
            best = allowed[(logits[row, allowed] / 0.7 + noise[row, allowed]).argmax()]
            assert chosen[row] == best


@pytest.mark.parametrize("options", [{}, {"top_k": 9}, {"top_p": 0.9}, {"temperature": 0.0}])
def test_the_engines_sample_the_same_tokens(options):
    logits = np.random.default_rng(1).normal(size=(4, 300)).astype(np.float32) * 2
    how, prompt_seeds = Sampling(seed=3, **options), seeds_of([[1], [2, 3], [2], [1]])
    jitted = jax.jit(sampled, static_argnames=("sampling",))
    for step in range(50):
        tokens, _ = sampled(logits, prompt_seeds, step, how)
        other, _ = sampled(torch.from_numpy(logits), torch.from_numpy(prompt_seeds), step, how)
        third, _ = jitted(logits, prompt_seeds, np.int32(step), sampling=how)
        assert tokens.tolist() == other.tolist() == third.tolist()


def test_noise_has_a_gumbel_distribution_and_rows_have_their_own():
    noise = sampling.gumbel((1, 2), np.arange(100)[:, None], np.arange(1000, dtype=np.int32))
    assert noise.dtype == np.float32
    assert np.isfinite(noise).all()
    quantiles = np.quantile(noise, [0.01, 0.25, 0.5, 0.75, 0.99])
    expected = -np.log(-np.log(np.array([0.01, 0.25, 0.5, 0.75, 0.99])))
    np.testing.assert_allclose(quantiles, expected, atol=0.05)
    assert abs(np.corrcoef(noise[:2])[0, 1]) < 0.15
    one, other, again, reversed_ = seeds_of([[1, 2], [3], [1, 2], [2, 1]])
    assert one == again
    assert len({one, other, reversed_}) == 3


def test_a_temperature_close_to_0_takes_the_most_likely_token():
    assert set(drawn(temperature=1e-40)) == {1}


def test_logits_that_are_not_finite_are_an_error():
    for bad in ([np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 0.0]):
        logits = np.array([[1.0, 2.0], bad], dtype=np.float32)
        for how in (Sampling(), Sampling(0.0), Sampling(top_p=0.5)):
            with pytest.raises(ValueError, match="logits are not finite; its weights are damaged"):
                tokens_of(
                    lambda n, logits=logits, how=how: sampled(
                        logits, np.zeros(2, np.int32), 0, how, n
                    ),
                    2,
                )
