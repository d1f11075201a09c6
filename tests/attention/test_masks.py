"""Tests of masks: predicates against the reference, composition, and boolean arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines import ENGINES
from headway.attention.grid import grid_of
from headway.attention.masks import (
    Mask,
    as_mask,
    both,
    causal,
    documents,
    materialize,
    padding,
    window,
)
from headway.attention.spec import DEFAULT, Spec
from headway.reference import masks as reference

BATCH, HEADS, QUERIES, KEYS = 2, 3, 5, 7
LENGTHS = np.array([4, 0])
IDS = np.array([[0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]])


def complete(mask, array=np.asarray, offset=None, queries=QUERIES):
    q, k = array(np.zeros((BATCH, HEADS, queries, 4))), array(np.zeros((BATCH, 1, KEYS, 4)))
    return materialize(q, k, Spec(as_mask(mask), offset=offset))


PAIRS = {
    "causal": (lambda array: causal, reference.causal),
    "window": (lambda array: window(3), reference.window(3)),
    "padding": (lambda array: padding(array(LENGTHS)), reference.padding(LENGTHS)),
    "documents": (lambda array: documents(array(IDS)), reference.documents(IDS)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("offset", [None, 0, -2, [1, -1]])
def test_equals_the_reference(engine, name, offset):
    ours, theirs = PAIRS[name]
    array = ENGINES[engine].array
    allowed_cells = complete(
        ours(array), array, array(offset) if isinstance(offset, list) else offset
    )
    expected = reference.matrix(theirs, BATCH, HEADS, QUERIES, KEYS, offset)
    assert allowed_cells.shape == (BATCH, HEADS, QUERIES, KEYS)
    assert np.array_equal(ENGINES[engine].numpy(allowed_cells), expected)
    assert 0 < expected.sum() < expected.size


@pytest.mark.parametrize("engine", ENGINES)
def test_composition(engine):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    pad, same = padding(array(LENGTHS)), documents(array(IDS))
    a, b, c = (numpy(complete(mask, array)) for mask in (causal, pad, same))
    assert np.array_equal(numpy(complete(causal & pad & same, array)), a & b & c)
    assert np.array_equal(numpy(complete(causal | ~pad, array)), a | ~b)
    assert np.array_equal(numpy(complete(~(causal & same), array)), ~(a & c))


def test_more_queries_than_keys_begin_before_the_first_key():
    allowed_cells = complete(causal, queries=9)
    assert not allowed_cells[:, :, :2].any()
    assert allowed_cells[0, 0, 2].tolist() == [True] + [False] * 6


def test_a_predicate_sees_batch_and_head():
    mask = Mask(lambda batch, head, query, key: (batch == 1) & (head == 2) & (key == query))
    allowed_cells = complete(mask, offset=0)
    assert allowed_cells.sum() == QUERIES
    assert allowed_cells[1, 2].diagonal().all()


def test_several_batch_axes_are_counted_through():
    q = np.zeros((2, 2, 3, 4, 5))
    allowed_cells = materialize(q, q, Spec(padding(np.array([1, 2, 3, 4]))))
    assert allowed_cells[:, :, 0, 0].sum(-1).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (2, 3, 5, 7), (2, 1, 1, 7), (5, 1)])
def test_arrays_broadcast_from_the_right_and_compose_from_either_side(engine, shape):
    given_array = np.random.default_rng(1).random(shape) > 0.4
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    expected = np.broadcast_to(given_array, (2, 3, 5, 7)) & numpy(complete(causal, array))
    for mask in (array(given_array) & causal, causal & array(given_array)):
        assert np.array_equal(numpy(complete(mask, array)), expected)
    either = numpy(complete(array(given_array) | causal, array))
    assert np.array_equal(
        either, np.broadcast_to(given_array, (2, 3, 5, 7)) | numpy(complete(causal, array))
    )


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 5, 7), (1, 2, 3, 5, 7)])
def test_an_array_of_another_shape_is_refused_with_advice(shape):
    with pytest.raises(ValueError, match=r"padding\(lengths\)"):
        complete(np.ones(shape, dtype=bool))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_array_of_numbers_is_refused_as_a_mask(engine):
    for numbers in (np.zeros((5, 7)), np.ones((5, 7), dtype=np.int64)):
        with pytest.raises(ValueError, match="must be passed as bias"):
            as_mask(ENGINES[engine].array(numbers))


def test_names_of_composed_masks():
    mask = causal & window(3) & causal
    assert str(mask | causal) == "(causal & window(3) & causal | causal)"
    assert both(None, causal) is causal


def test_parts_of_the_matrix():
    mask = causal & (np.random.default_rng(2).random((5, 7)) > 0.3)
    q, k = np.zeros((BATCH, HEADS, QUERIES, 4)), np.zeros((BATCH, HEADS, KEYS, 4))
    where = grid_of(q, k, DEFAULT).select(rows=slice(1, 4), columns=slice(2, 6))
    assert np.array_equal(mask.on(where), materialize(q, k, Spec(mask))[0, 0, 1:4, 2:6])


def test_masks_work_under_jit():
    lengths = jnp.asarray(LENGTHS)

    @jax.jit
    def run(q, lengths):
        return materialize(q, q, Spec(causal & padding(lengths)))

    q = jnp.zeros((2, 3, 5, 4))
    assert np.array_equal(
        run(q, lengths), materialize(np.asarray(q), np.asarray(q), Spec(causal & padding(LENGTHS)))
    )


@given(width=st.integers(1, 9))
def test_a_window_shows_its_width(width):
    q = np.zeros((1, 9, 2))
    assert materialize(q, q, Spec(window(width))).sum(-1).tolist() == [
        [min(i + 1, width) for i in range(9)]
    ]


def test_a_window_of_width_zero_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        window(0)


def test_torch_masks_follow_the_device_of_the_queries():
    q = torch.zeros(1, 2, 3, 4, device="meta")
    assert materialize(q, q, Spec(causal)).device.type == "meta"


@pytest.mark.parametrize(
    ("mask", "band", "is_band"),
    [
        (causal, (0, np.inf), True),
        (window(3), (0, 2), True),
        (causal & window(3), (0, 2), True),
        (window(3) & padding(LENGTHS), (0, 2), False),
        (causal | window(3), (-np.inf, np.inf), False),
        (~causal, (-np.inf, np.inf), False),
    ],
    ids=str,
)
def test_no_cell_outside_the_band_is_allowed(mask, band, is_band):
    assert (mask.band, mask.is_band) == (band, is_band)
    seen = complete(mask, offset=1)
    distance = 1 + np.arange(QUERIES)[:, None] - np.arange(KEYS)
    inside = (distance >= band[0]) & (distance <= band[1])
    assert not seen[..., ~inside].any()
    assert not is_band or seen[..., inside].all()


def test_only_masks_without_arrays_are_functions_of_positions():
    array = np.ones((QUERIES, KEYS), dtype=bool)
    assert (causal & ~(padding(LENGTHS) | documents(IDS))).predicate is not None
    for mask in (as_mask(array), causal & array, array | causal, ~(causal & array)):
        assert mask.predicate is None


def test_parts_of_the_heads():
    of_heads = np.random.default_rng(2).random((HEADS, 1, KEYS)) > 0.5
    q, k = np.zeros((BATCH, HEADS, QUERIES, 4)), np.zeros((BATCH, HEADS, KEYS, 4))
    where = grid_of(q, k, DEFAULT).select(heads=slice(1, 3))
    mask = Mask(lambda batch, head, query, key: key % HEADS == head)
    for item in (as_mask(of_heads), mask):
        expected = materialize(q, k, Spec(as_mask(item)))[:, 1:3]
        assert np.array_equal(np.broadcast_to(item.on(where), expected.shape), expected)
