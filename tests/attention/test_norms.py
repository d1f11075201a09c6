"""Tests of norms on three engines against PyTorch."""

import numpy as np
import pytest
import torch

from engines import ENGINES
from headway.attention.norms import rms_norm

R = np.random.default_rng(0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("features", [(8,), (5, 8)])
def test_rms_norm(engine, features):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    x, weight = R.normal(size=(2, 3, 5, 8)), R.normal(size=features)
    norm = torch.nn.RMSNorm(features, eps=0.1, dtype=torch.float64)
    norm.weight.data = torch.tensor(weight)
    expected = norm(torch.tensor(x)).detach().numpy()
    output = numpy(rms_norm(array(x), array(weight), eps=0.1))
    assert np.allclose(output, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_gradients_of_rms_norm(engine):
    x, weight = R.normal(size=(3, 5, 8)), R.normal(size=8)
    x[0, 0] = 0  # padding has a size of 0

    def theirs(x, weight):
        return torch.nn.functional.rms_norm(x, (8,), weight, 1e-5)

    expected = ENGINES["torch"].gradients(theirs, x, weight)
    output = ENGINES[engine].gradients(lambda x, weight: rms_norm(x, weight, 1e-5), x, weight)
    for one, other in zip(output, expected, strict=True):
        assert np.allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_rms_norm_in_low_precision_keeps_the_dtype_and_averages_in_float32(engine):
    array, numpy = ENGINES[engine].array, ENGINES[engine].numpy
    x = array(np.linspace(200, 400, 512, dtype=np.float32).astype(np.float16))  # squares overflow
    output = rms_norm(x, array(np.ones(512, np.float16)), 1e-5)
    assert output.dtype == x.dtype
    assert np.isclose(np.mean(numpy(output).astype(np.float64) ** 2), 1, atol=1e-3)


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"weight \(5, 8\) must match the end of x"):
        rms_norm(np.ones((3, 8)), np.ones((5, 8)), 1e-5)
