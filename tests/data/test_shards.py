"""Shards are the concatenation of their arrays, and a batch of windows reads them as such."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.data import batches
from headway.data.shards import Shards

LENGTHS = st.lists(st.integers(0, 6), max_size=6)


def arrays_of(lengths, dtype=np.uint16):
    ends = np.cumsum([0, *lengths])
    return [np.arange(a, b).astype(dtype) for a, b in pairwise(ends)]


@given(LENGTHS, st.data())
def test_every_index_is_that_of_the_concatenation(lengths, data):
    arrays = arrays_of(lengths)
    shards, expected = Shards(arrays), np.concatenate([np.empty(0, np.uint16), *arrays])
    assert len(shards) == len(expected)
    for _ in range(20):
        index = data.draw(st.slices(len(expected)))
        assert np.array_equal(shards[index], expected[index])
        cut = data.draw(st.integers(0, len(expected)))
        for part, other in zip(shards.split(cut), np.split(expected, [cut]), strict=True):
            assert np.array_equal(part[:], other)
        if len(expected):
            number = st.integers(-len(expected), len(expected) - 1)
            assert shards[index := data.draw(number)] == expected[index]
            shape = data.draw(st.tuples(st.integers(0, 3), st.integers(1, 4)))
            size = shape[0] * shape[1]
            rows = np.array(data.draw(st.lists(number, min_size=size, max_size=size)), int)
            rows = rows.reshape(shape)
            assert shards[rows].dtype == expected.dtype
            assert np.array_equal(shards[rows], expected[rows])


def test_invalid_indices():
    shards = Shards(arrays_of([3, 2]))
    for index in (5, -6, np.array([0, 7])):
        with pytest.raises(IndexError, match="outside the 5 tokens"):
            shards[index]
    with pytest.raises(TypeError, match="integers"):
        shards[np.array([True, False, True, False, True])]


@given(st.lists(st.integers(1, 30), min_size=3, max_size=9), st.integers(0, 99))
def test_batches_are_those_of_one_array(lengths, step):
    arrays = arrays_of([10, *lengths], np.uint32)
    shards, expected = Shards(arrays), np.concatenate(arrays)
    options = {"seed": 1, "step": step, "size": 5, "context": 7}
    for one, other in zip(
        [*batches.batch(shards, **options), *batches.evaluation(shards, 7, 3)],
        [*batches.batch(expected, **options), *batches.evaluation(expected, 7, 3)],
        strict=True,
    ):
        assert one.dtype == np.int64
        assert np.array_equal(one, other)
