"""Calibration on this machine."""

from dataclasses import replace

import pytest
import torch

from gpts import PRESETS, gpt_config
from headway.plan.cards import Cluster
from headway.plan.counts import Work
from headway.plan.measure import CPU_OPERATIONS, _smaller, measure
from headway.plan.seconds import seconds

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["gpt2", "modern"])
def test_the_plan_of_a_block_is_what_was_measured(kind):
    config = gpt_config(37, 32, 64, 1, 4, **PRESETS[kind])
    work = Work(config, 32, 4, itemsize=4, compiled=False)
    measured = measure(work, CPU)
    times = seconds(work, Cluster(measured.card), measured.efficiency)
    # A vocabulary of one and no update: what remains is the block.
    small = replace(work, model=replace(config, vocabulary=1))
    times = seconds(small, Cluster(measured.card), measured.efficiency)
    milliseconds = measured.milliseconds
    assert 1000 * times.products == pytest.approx(milliseconds["products"], rel=0.01)
    assert 1000 * times.attention == pytest.approx(milliseconds["attention"], rel=0.01)
    rest = max(milliseconds["block"] - milliseconds["products"] - milliseconds["attention"], 0)
    assert 1000 * times.memory >= 0.99 * rest
    assert 0 < measured.efficiency.memory <= 1
    assert measured.card.peak > 1e8


def test_a_large_model_is_measured_with_fewer_tokens_on_a_cpu():
    config = gpt_config(37, 8192, 4096, 1, 32)
    small = _smaller(Work(config, 8192, 16))
    assert small.rows == 1
    assert 16 <= small.tokens < 8192
    tiny = Work(gpt_config(37, 32, 64, 1, 4), 32, 4)
    assert _smaller(tiny) == tiny
    assert CPU_OPERATIONS > 0
