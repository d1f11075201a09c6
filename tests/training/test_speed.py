"""The speed of training: operations, the peak of a device, and what a user sees."""

import time

import pytest

from gpts import MODERN, gpt_config
from headway.torch import GPT
from headway.training import speed


def test_operations_are_those_of_the_matrix_products():
    """Counted one by one: 2 for each multiplication, three times with the backward pass."""
    for tied, choices in ((True, MODERN), (False, {"mlp": "gelu"})):
        config = gpt_config(11, 8, 12, 2, 3, tied=tied, **choices)
        model = GPT(config)
        parameters = sum(p.numel() for p in model.parameters())
        small = sum(p.numel() for p in model.parameters() if p.ndim == 1)
        products = 2 * sum(
            weight.numel() for name, weight in model.named_parameters(remove_duplicate=False)
            if weight.ndim == 2 and "embedding" not in name
        )  # fmt: skip
        attention = 2 * 2 * config.layers * 6 * config.width  # scores and context of 6 tokens
        assert speed.operations(config, parameters, 6) == 3 * (products + attention) + 6 * small


def test_the_peak_is_the_fastest_of_several_products():
    sizes = []

    def product(size):
        sizes.append(size)
        return lambda: time.sleep(0.01)

    assert speed.peak(product, "cpu") == pytest.approx(2 * 1024**3 / 0.01, rel=0.3)
    assert speed.peak(product, "cuda") > 0
    assert sizes == [1024, 8192]


def test_the_time_of_a_step_is_the_median():
    ends = [float(n) for n in range(20)]
    assert speed.step_time(ends) == 1
    assert speed.step_time([*ends, *(n + 500 for n in ends)]) == 1  # an evaluation between them
    assert speed.step_time([float(n // 4 * 4) for n in range(40)]) == 1  # four steps at once
    assert speed.step_time([1.0, 4.0]) == 3
    assert speed.step_time([1.0]) is None
