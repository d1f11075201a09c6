"""Positions, heads, scores and projections, on three engines against the reference."""

from inspect import unwrap

import numpy as np
import pytest

from engines import ENGINES
from headway.attention import heads, positions, projections, scores
from headway.reference import positions as reference
from headway.reference import scores as reference_scores

R = np.random.default_rng(0)


@pytest.mark.parametrize("engine", ENGINES)
def test_sinusoidal(engine):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    output = positions.sinusoidal(array(np.arange(7)), 6, like=array(np.zeros(1)))
    assert np.allclose(numpy(output), reference.sinusoidal(7, 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_rotary(engine):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    x, where = R.normal(size=(2, 3, 5, 8)), np.array([3, 4, 9, 1000, 0], dtype=np.int32)
    output = numpy(positions.rotary(array(x), array(where), 500.0))
    for b in range(2):
        for h in range(3):
            expected = reference.rotary(x[b, h], where, 500.0)
            assert np.allclose(output[b, h], expected, rtol=0, atol=1e-11)


def test_rotary_scores_depend_only_on_the_distance():
    q, k = R.normal(size=(1, 8)), R.normal(size=(1, 8))

    def score(a, b):
        rotated = (positions.rotary(x, np.array([p])) for x, p in ((q, a), (k, b)))
        one, other = rotated
        return (one @ other.T).item()

    assert np.isclose(score(5, 2), score(105, 102), atol=1e-12)
    assert not np.isclose(score(5, 2), score(2, 5), atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_interleaved_pairs_rotate_like_halves(engine):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    x, angles = R.normal(size=(2, 3, 5, 8)), R.normal(size=(5, 4))
    cos, sin = array(np.cos(angles)), array(np.sin(angles))
    apart = np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
    halves = numpy(positions.rotate(array(apart), cos, sin))
    output = numpy(positions.rotate(array(x), cos, sin, interleaved=True))
    assert np.array_equal(output[..., ::2], halves[..., :4])
    assert np.array_equal(output[..., 1::2], halves[..., 4:])


def test_rotate_needs_one_angle_per_pair():
    with pytest.raises(ValueError, match=r"8 features need half as many angles \(got 1\)"):
        positions.rotate(np.ones((2, 8)), np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"8 features need half as many angles \(got 3\)"):
        # Unwrapped: in tests the annotations refuse two sizes first.
        unwrap(positions.rotate)(np.ones((2, 8)), np.ones((2, 4)), np.ones((2, 3)))


def test_rotary_in_low_precision_separates_neighboring_positions():
    import torch

    x = torch.ones(2, 4, dtype=torch.bfloat16)
    output = positions.rotary(x, torch.tensor([1000, 1001]))
    assert output.dtype == torch.bfloat16
    assert not torch.equal(output[0], output[1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 12])
def test_alibi(engine, count):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    q, k = np.array([2, 3, 7], dtype=np.int32), np.arange(5, dtype=np.int32)
    output = numpy(positions.alibi(count, array(q), array(k)))
    assert np.allclose(output, reference.alibi(count, q, k), rtol=1e-6)


def test_alibi_has_the_slopes_of_the_paper():
    assert positions.alibi_slopes(8, np.arange(1)).tolist() == [2.0**-i for i in range(1, 9)]


@pytest.mark.parametrize("engine", ENGINES)
def test_relative(engine):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    table = R.normal(size=(3, 7))
    q, k = np.array([0, 3, 9]), np.arange(6)
    output = numpy(positions.relative(array(table), array(q), array(k)))
    assert np.array_equal(output, reference.relative(table, q, k))


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="even number of features"):
        positions.rotary(np.ones((2, 5)), np.arange(2))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["dot", "scaled_dot", "additive"])
def test_scores(engine, name):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    q, k = R.normal(size=(2, 3, 4)), R.normal(size=(2, 5, 4))
    extra = [R.normal(size=s) for s in ((4, 6), (4, 6), (6,))] if name == "additive" else []
    output = numpy(getattr(scores, name)(*map(array, (q, k, *extra))))
    for row in range(2):
        expected = getattr(reference_scores, name)(q[row], k[row], *extra)
        assert np.allclose(output[row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_heads(engine):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    x = np.arange(2 * 5 * 12).reshape(2, 5, 12)
    output = heads.split(array(x), 3)
    assert np.array_equal(numpy(output)[1, 2], x[1, :, 8:12])
    assert np.array_equal(numpy(heads.merge(output)), x)
    repeated = numpy(heads.repeat(output, like=array(np.zeros((2, 6, 1, 1)))))
    assert all(np.array_equal(repeated[:, h], numpy(output)[:, h // 2]) for h in range(6))
    with pytest.raises(ValueError, match="5 heads do not divide 12"):
        heads.split(array(x), 5)
    with pytest.raises(ValueError, match="do not divide 4"):
        heads.repeat(output, like=array(np.zeros((2, 4, 1, 1))))


def test_projections():
    x, W = R.normal(size=(2, 5, 3)), R.normal(size=(3, 12))
    b = R.normal(size=12)
    fused = projections.project_fused(x, W, b, d_q=6)
    apart = projections.project(x, W[:, :6], W[:, 6:9], W[:, 9:], b[:6], b[6:9], b[9:])
    for one, other in zip(fused, apart, strict=True):
        assert np.allclose(one, other, atol=1e-14)
    assert [part.shape[-1] for part in projections.project_fused(x, W)] == [4, 4, 4]
    assert np.array_equal(projections.output(x, W), x @ W)
