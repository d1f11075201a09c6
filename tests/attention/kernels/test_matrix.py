"""Tests that `is_unmasked` and `is_causal_from_top_left` agree with the complete matrix."""

from itertools import product

import numpy as np
import pytest

from headway.attention.kernels.matrix import is_causal_from_top_left, is_unmasked
from headway.attention.masks import causal, materialize, window
from headway.attention.spec import Spec

MASKS = {"causal": causal, "window(1)": window(1), "window(3)": window(3)}


@pytest.mark.parametrize("name", MASKS)
def test_both_functions_agree_with_the_matrix(name):
    answers = set()
    for rows, columns, offset in product((1, 2, 3), (1, 2, 3), (None, 0, 1, 2, 3)):
        queries, keys = np.zeros((1, 1, rows, 2)), np.zeros((1, 1, columns, 2))
        spec = Spec(mask=MASKS[name], offset=offset)
        allowed = materialize(queries, keys, spec)
        assert is_unmasked(queries, keys, spec) == allowed.all()
        if is_causal_from_top_left(queries, keys, spec):
            assert (allowed == np.tri(rows, columns, dtype=bool)).all()
        answers.add(is_unmasked(queries, keys, spec))
    assert answers == {True, False}


def test_other_masks_and_biases_are_not_unmasked():
    queries, keys = np.zeros((2, 1, 1, 2)), np.zeros((2, 1, 3, 2))
    assert is_unmasked(queries, keys, Spec())
    assert not is_unmasked(queries, keys, Spec(bias=np.zeros((1, 3))))
    assert not is_unmasked(queries, keys, Spec(mask=causal, bias=np.zeros((1, 3))))
    assert not is_unmasked(queries, keys, Spec(mask=~causal))
    assert not is_unmasked(queries, keys, Spec(mask=causal, offset=np.array([2, 1])))
