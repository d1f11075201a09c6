"""Tests of dropout by a hash: equal cells in all engines, the expected rate, independence."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines import ENGINES
from headway.attention.dropout import drop, keep
from headway.attention.spec import Spec, fold
from headway.reference import dropout as reference


@pytest.mark.parametrize("engine", ENGINES)
@given(
    seed=st.integers(-(2**40), 2**40),
    step=st.integers(0, 2**31),
    rate=st.floats(0, 1, exclude_max=True),
)
def test_drops_the_cells_of_the_reference(engine, seed, step, rate):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    like = array(np.zeros((2, 3)))
    rows = array(np.array([[0], [70_000]], dtype=np.int32))
    columns = array(np.array([0, 1, 5], dtype=np.int32))
    output = numpy(keep(rate, (seed, step), rows, columns, like=like))
    expected = [
        [reference.keep((seed, step, row, column), rate) for column in (0, 1, 5)]
        for row in (0, 70_000)
    ]
    assert np.array_equal(output, expected)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_rate_and_scale(rate):
    output = drop(np.ones((300, 400)), Spec(dropout=rate, seed=7))
    assert set(np.unique(output)) <= {0.0, 1 / (1 - rate)}
    # Six standard deviations of a binomial of 120,000.
    assert abs((output == 0).mean() - rate) <= 6 * np.sqrt(rate * (1 - rate) / 120_000)


def test_neighbours_rows_columns_and_seeds_are_independent():
    masks = {
        seed: drop(np.ones((500, 500)), Spec(dropout=0.5, seed=seed)) > 0
        for seed in (0, 1, (0, 1), (1, 0))
    }
    pairs = [(masks[0][1:], masks[0][:-1]), (masks[0][:, 1:], masks[0][:, :-1])]
    pairs += [(masks[0], masks[1]), (masks[(0, 1)], masks[(1, 0)]), (masks[0], masks[0].T)]
    for one, other in pairs:
        assert abs(np.mean(one == other) - 0.5) < 6 * 0.5 / 499


def test_an_array_as_seed_is_the_same_as_its_number_and_needs_no_new_compilation():
    x = np.ones((4, 5))
    expected = drop(x, Spec(dropout=0.5, seed=(3, 8)))
    by_tensor = Spec(dropout=0.5, seed=(3, torch.tensor(8)))
    assert np.array_equal(drop(torch.ones(4, 5), by_tensor).numpy(), expected)
    compiled = jax.jit(lambda step: drop(jax.numpy.ones((4, 5)), Spec(dropout=0.5, seed=(3, step))))
    assert np.array_equal(compiled(8), expected)
    assert not np.array_equal(compiled(9), expected)
    assert compiled._cache_size() == 1


def test_fold_extends_a_seed():
    assert fold(Spec(), 1) == Spec()
    assert fold(Spec(seed=3), 1) == Spec(seed=(3, 1)) == fold(Spec(seed=(3,)), 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_slice_of_a_batch_drops_the_same_cells(engine):
    x = ENGINES[engine].array(np.ones((5, 3, 4)))
    complete = drop(x, Spec(dropout=0.4, seed=2))
    part = drop(x[2:], Spec(dropout=0.4, seed=2, batch_offset=2))
    assert np.array_equal(ENGINES[engine].numpy(part), ENGINES[engine].numpy(complete)[2:])
    assert not np.array_equal(ENGINES[engine].numpy(part), ENGINES[engine].numpy(complete)[:3])


def test_refusals():
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            drop(np.ones((2, 2)), Spec(dropout=rate, seed=1))
    with pytest.raises(ValueError, match="needs a seed"):
        drop(np.ones((2, 2)), Spec(dropout=0.5))
