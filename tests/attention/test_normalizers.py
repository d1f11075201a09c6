"""Tests of the normalizers: the exact algorithms against the bisection of the reference."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines import ENGINES
from headway.attention import normalizers
from headway.reference import normalizers as reference

NAMES = ("softmax", "divide_by_sum", "sparsemax", "entmax15")
# Few distinct numbers, so that ties are frequent, and large gaps, so that supports are small.
ROWS = hnp.arrays(
    np.float64, (4, 7), elements=st.sampled_from([0.25, 0.5, 0.5, 0.75, 1.0, 1.5, 3.0, 40.0])
)
ALLOWED = hnp.arrays(bool, (4, 7))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
@given(scores=ROWS, allowed=ALLOWED)
def test_equals_the_reference_row_by_row(engine, name, scores, allowed):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    output = numpy(getattr(normalizers, name)(array(scores), array(allowed)))
    assert np.isfinite(output).all()
    for row in range(4):
        if allowed[row].any():
            expected = getattr(reference, name)(scores[row], allowed[row])
            assert np.allclose(output[row], expected, rtol=0, atol=1e-12)
            assert (output[row][~allowed[row]] == 0).all()


@pytest.mark.parametrize("name", NAMES)
@given(scores=ROWS)
def test_all_allowed_is_the_same_as_no_mask(name, scores):
    normalize = getattr(normalizers, name)
    assert np.array_equal(normalize(scores), normalize(scores, np.ones((4, 7), dtype=bool)))
    assert np.allclose(normalize(scores).sum(-1), 1)


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax15"])
def test_huge_and_far_apart_scores(name):
    scores = np.array([[1e300, -1e300, 0.0], [-1e300, -1e300, -1e300], [700.0, -700.0, 710.0]])
    allowed = np.array([[True, True, True], [True, True, False], [True, True, False]])
    output = getattr(normalizers, name)(scores, allowed)
    assert np.allclose(output, [[1, 0, 0], [0.5, 0.5, 0], [1, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@given(scores=ROWS, allowed=ALLOWED)
def test_gradients_of_torch_and_jax_agree(name, scores, allowed):
    """Jitted, so that one compilation serves every example."""
    gradients = jax.jit(
        jax.grad(
            lambda s, a: (
                getattr(normalizers, name)(s, a) * np.cos(np.arange(28).reshape(4, 7))
            ).sum()
        )
    )

    def run(s):
        return getattr(normalizers, name)(s, torch.from_numpy(allowed))

    leaf = torch.from_numpy(scores.copy()).requires_grad_()
    (run(leaf) * torch.from_numpy(np.cos(np.arange(28).reshape(4, 7)))).sum().backward()
    one, other = leaf.grad.numpy(), np.asarray(gradients(scores, allowed))
    assert np.isfinite(one).all()
    assert (one[~allowed] == 0).all()
    assert np.allclose(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15", "softmax"])
def test_gradient_is_that_of_finite_differences(name):
    # Away from the edge of the support, where the function has a kink.
    scores = torch.tensor([[0.1, 0.35, -0.2, 0.9, 0.77], [2.0, 0.1, 0.0, -1.0, 1.9]]).double()
    allowed = torch.tensor([[True, True, False, True, True], [True] * 5])
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: getattr(normalizers, name)(s, allowed), (scores,))


def test_sparsemax_is_sparser_than_entmax_than_softmax():
    scores = np.array([[2.0, 1.4, 0.7, -0.5, -3.0]])
    support = [
        (getattr(normalizers, n)(scores) > 0).sum() for n in ("sparsemax", "entmax15", "softmax")
    ]
    assert support == [2, 3, 5]
