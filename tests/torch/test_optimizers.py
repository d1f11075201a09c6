"""The optimiser against its equations, written out in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from gpts import MODERN, gpt_config
from headway.torch import GPT
from headway.torch.optimizers import Optimizer
from headway.training import muon
from headway.training.settings import TrainingConfig

RATES, DECAY = (0.1, 0.05, 0.07), 0.3


def adamw(value, gradients, decay):
    first = second = 0.0
    for step, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True), start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        value = value * (1 - rate * decay)
        unbiased = first / (1 - 0.9**step), second / (1 - 0.95**step)
        value = value - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return value


def muon_steps(value, gradients):
    """Of one matrix (d_out, d_in)."""
    momentum = 0.0
    for gradient, rate in zip(gradients, RATES, strict=True):
        momentum = 0.9 * momentum + 0.1 * gradient
        ahead = 0.9 * momentum + 0.1 * gradient
        size = 0.2 * np.sqrt(max(value.shape))
        value = (1 - rate * DECAY) * value - rate * size * muon.orthogonal(ahead)
    return value


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("preset", [{}, MODERN], ids=["gpt2", "modern"])
def test_three_steps_follow_the_equations(optimizer, preset):
    model = GPT(gpt_config(11, 8, 12, 2, 3, kv_heads=1, **preset)).double()
    numbers = np.random.default_rng(0)
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    gradients = {name: numbers.normal(size=(3, *v.shape)) for name, v in before.items()}
    own = Optimizer(model, TrainingConfig(optimizer=optimizer, weight_decay=DECAY))
    for step, rate in enumerate(RATES):
        for name, p in model.named_parameters():
            p.grad = torch.from_numpy(gradients[name][step])
        own.step(rate, torch.tensor(True))
    for name, p in model.named_parameters():
        if optimizer == "muon" and muon.is_matrix(name, p.ndim):
            cut = muon.unpacked(name, before[name])
            turned = [muon.unpacked(name, gradient) for gradient in gradients[name]]
            ended = [muon_steps(matrix, [t[i] for t in turned]) for i, matrix in enumerate(cut)]
            wanted = muon.packed(name, ended, before[name])
        else:
            wanted = adamw(before[name], gradients[name], DECAY if p.ndim >= 2 else 0.0)
        np.testing.assert_allclose(p.detach().numpy(), wanted, rtol=1e-9, atol=1e-10, err_msg=name)


def test_state_has_a_name_for_every_parameter_and_is_all_that_a_step_needs():
    model = GPT(gpt_config(11, 8, 12, 1, 3, **MODERN))
    config = TrainingConfig(optimizer="muon")
    own = Optimizer(model, config)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    own.step(0.1, torch.tensor(True))
    state = {name: tensor.clone() for name, tensor in own.state().items()}
    layer = "blocks.0.attention.q.weight"
    assert f"muon.momentum.{layer}" in state
    assert {"adamw.first.final_norm.weight", "adamw.second.final_norm.weight"} <= state.keys()
    assert sum(name.startswith("adamw.first.") for name in state) == sum(
        not muon.is_matrix(name, p.ndim) for name, p in model.named_parameters()
    )
    again = Optimizer(model, config)
    with torch.no_grad():
        for name, tensor in again.state().items():
            tensor.copy_(state[name])
    again.count(1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    own.step(0.1, torch.tensor(True))
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
    again.step(0.1, torch.tensor(True))
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())


def test_a_module_of_another_kind_can_be_trained_too():
    layer = nn.Linear(3, 2)
    own = Optimizer(layer, TrainingConfig(weight_decay=0.0))
    layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
    before = layer.weight.detach().clone()
    own.step(0.1, torch.tensor(True))
    torch.testing.assert_close(before - layer.weight, torch.full((2, 3), 0.1))
