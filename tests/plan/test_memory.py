"""The memory of a step, against the tensors of real training."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from gpts import PRESETS, gpt_config
from headway.plan.counts import FLOAT32, Work, optimizer_numbers, parameters, saved
from headway.plan.memory import logits, memory, moments
from headway.plan.published import gpt2, llama
from headway.torch import GPT
from headway.torch.loss import linear_cross_entropy
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training.settings import TrainingConfig
from live import Live

GIB = 2**30
TOKENS, BATCH = 32, 6


def trainer_of(config, optimizer="adamw", micro_batch=None, precision="float32"):
    settings = {"evaluate_every": 10**6, "evaluation_windows": 1, "compile": False}
    training = TrainingConfig(
        batch=BATCH, micro_batch=micro_batch, optimizer=optimizer, precision=precision, **settings
    )
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, 2000)
    model = GPT(config)
    return Trainer(model, NextToken(model, tokens[:-500], tokens[-500:], training), training)


def peak(trainer):
    """The most bytes of a step, with the parameters and the state of the optimizer."""
    trainer.advance()
    for parameter in trainer.model.parameters():
        parameter.grad = None
    state = trainer._optimizer.state().values()
    with Live(*trainer.model.parameters(), *state) as live:
        trainer.advance()
    return live.peak


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["gpt2", "modern", "llama"])
def test_weights_gradients_and_optimizer_are_those_of_the_trainer(kind, optimizer):
    config = gpt_config(37, TOKENS, 24, 2, 4, **PRESETS[kind])
    trainer = trainer_of(config, optimizer)
    trainer.advance()
    work = Work(config, TOKENS, BATCH, itemsize=4, muon=optimizer == "muon")
    weights = sum(p.nbytes for p in trainer.model.parameters())
    gradients = sum(p.grad.nbytes for p in trainer.model.parameters())
    state = sum(tensor.nbytes for tensor in trainer._optimizer.state().values())
    assert moments(work)[0].weights == weights
    assert moments(work)[0].optimizer == state == 4 * optimizer_numbers(config, work.muon)
    assert moments(work)[-1].gradients == gradients == 4 * parameters(config).total
    half = Work(config, TOKENS, BATCH, itemsize=2)  # and the rounded copies
    copies = sum(p.bfloat16().nbytes for p in trainer.model.parameters())
    assert moments(half)[0].weights == weights + copies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 37 * 4, 2**26])
def test_logits_are_those_of_the_loss(at_once, dtype):
    """Up to a few numbers per token, such as its loss and the address of its target."""
    config, count = gpt_config(370, TOKENS, 24, 2, 4), 3 * TOKENS
    x = torch.randn(count, 24, dtype=dtype, requires_grad=True)
    weight = torch.randn(370, 24, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 370, (count,))
    with Live(x, weight, targets) as live:
        before = live.now
        loss = linear_cross_entropy(x, weight, targets, logits_at_once=at_once)
    assert loss.isfinite()
    work = Work(config, TOKENS, 3, itemsize=dtype.itemsize, logits_at_once=at_once)
    assert logits(work) == pytest.approx(live.peak - before, rel=0.01, abs=32 * count)


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_peak_of_a_step(kind, optimizer, micro_batch):
    """Within 6%: a backward pass has temporary tensors that are not counted one by one."""
    config = gpt_config(137, TOKENS, 48, 3, 4, **PRESETS[kind])
    rows = micro_batch or BATCH
    work = Work(config, TOKENS, rows, BATCH // rows, itemsize=4, muon=optimizer == "muon")
    real = peak(trainer_of(config, optimizer, micro_batch))
    assert memory(work).total == pytest.approx(real, rel=0.06)


def test_the_peak_of_a_step_with_checkpointing():
    config = gpt_config(137, TOKENS, 48, 8, 4)
    trainer = trainer_of(config)
    for block in trainer.model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    work = Work(config, TOKENS, BATCH, itemsize=4, recomputed=1.0)
    real, plan = peak(trainer), memory(work).total
    assert plan == pytest.approx(real, rel=0.06)
    without = memory(Work(config, TOKENS, BATCH, itemsize=4)).total
    assert plan < 0.6 * without


def test_the_peak_on_a_gpu():
    """docs/bench/gpu.json: 7.38 and 8.67 GiB on an H200, batch 16 x 1,024, in bfloat16."""
    for kind, muon, measured in (("gpt2", False, 7.38), ("modern", True, 8.67)):
        work = Work(gpt2("124M", kind), 1024, 16, muon=muon)
        assert memory(work).total / GIB == pytest.approx(measured, rel=0.02)


def test_more_gpus_hold_less_each():
    """Sharded: parameters, gradients, optimizer. Gathered: two blocks, embedding and head."""
    config = llama("Llama 3.1 8B", 8192)
    work, count = Work(config, 8192, 1), parameters(config)
    eight, many = moments(work, 8)[0], moments(work, 1024)[0]
    assert eight.optimizer == 128 * many.optimizer == FLOAT32 * 2 * count.total / 8
    gathered = 2 * (count.embedding + count.head + 2 * count.blocks / 32)
    assert eight.weights - gathered == 128 * (many.weights - gathered) == 4 * count.total / 8
    assert eight.activations == many.activations
    last = moments(work, 8)[2]
    assert last.gradients == 4 * count.total / 8 + 2 * 4 * count.blocks / 32
    several = moments(Work(config, 8192, 1, micro_batches=2), 8)[0]
    assert several.gradients == 4 * count.total  # not sharded until the update


def test_activations_of_a_window_add_up():
    config = gpt2("124M")
    one, four = (moments(Work(config, 1024, rows))[0].activations for rows in (1, 4))
    assert four == 4 * one
    stream = 1024 * 768 * 2
    assert one == 12 * sum(saved(config, 1024, 2).values()) + 2 * stream + 8 * 1024
