"""PyTorch and JAX give the same numbers from the same checkpoint.

Bounds: 1e-5 in float32 and 1e-10 in float64 for logits, gradients and steps of an optimizer; 1e-4
for the loss curves of ten steps on the same batches. `make docs` writes the measured differences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gpts import PRESETS, TOKENS, config, lively
from headway.attention.spec import Spec
from headway.jax import gpt
from headway.jax import optimizers as jax_optimizers
from headway.jax import train as jax_train
from headway.jax import weights as jax_weights
from headway.jax.gpt import Model
from headway.jax.layers import multi_head
from headway.jax.layers import of_rung as jax_of_rung
from headway.ladder.rungs import LADDER
from headway.torch import GPT
from headway.torch import gpt as torch_gpt
from headway.torch import optimizers as torch_optimizers
from headway.torch import weights as torch_weights
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training.settings import TrainingConfig

BOUNDS = {"float32": 1e-5, "float64": 1e-10}
TEXT = np.random.default_rng(1).integers(0, 11, 600)
MODELS = {
    **{name: (changes, None) for name, changes in PRESETS.items()},
    "gpt2, dropout": ({"dropout": 0.2}, None),
    **{f"rung {name}": ({}, rung) for name, rung in LADDER.items()},
    "rung stacked, dropout": ({"dropout": 0.2}, LADDER["stacked"]),
}
SPEC = Spec(seed=(3, 4))  # of dropout


def pair(name, dtype, **more):
    """The same weights as models of both engines."""
    changes, rung = MODELS[name]
    of = config(**changes, **more)
    attention = multi_head if rung is None else jax_of_rung(rung)
    arrays = {n: a.astype(dtype) for n, a in lively(of, attention.shapes(of)).items()}
    torch_attention = torch_gpt.multi_head if rung is None else torch_gpt.of_rung(rung)
    torch_model = GPT(of, torch_attention).to(getattr(torch, dtype))
    torch_weights.fill(torch_model, arrays)
    params = {n: jnp.asarray(a) for n, a in arrays.items()}
    return torch_model, Model(params, of, attention)


def difference(one, other):
    """The largest difference, divided by the largest absolute value if that is above 1."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    assert one.shape == other.shape
    return np.abs(one - other).max() / max(1.0, np.abs(other).max())


def model_difference(name, dtype):
    """Compare the logits, and all gradients of the loss."""
    torch_model, jax_model = pair(name, dtype, layers=1)
    inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]
    logits = torch_model.train()(torch.from_numpy(inputs), SPEC)
    labels = torch.from_numpy(targets).flatten()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels).backward()

    @jax.jit
    def forward_and_gradients(params):
        of = (jax_model.config, jax_model.attention)
        output = gpt.forward(params, inputs, *of, SPEC)
        return output, jax.grad(jax_train.loss)(params, inputs, targets, *of, SPEC)

    output, gradients = forward_and_gradients(jax_model.params)
    assert output.dtype == dtype
    expected = {n: p.grad for n, p in torch_model.named_parameters()}
    assert gradients.keys() == expected.keys()
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())
    worst = max(difference(gradients[n], expected[n]) for n in gradients)
    return difference(output, logits.detach()), worst


def optimizer_difference(name, dtype, optimizer):
    """Compare parameters and optimizer state after two steps with the same random gradients.

    With computed gradients a rounding difference could become as large as a step: Adam divides by
    the size of the gradient, and the true gradient of a key's bias is 0.
    """
    torch_model, jax_model = pair(name, dtype, layers=1)
    training = TrainingConfig(optimizer=optimizer)
    torch_optimizer = torch_optimizers.Optimizer(torch_model, training)
    transform = jax_optimizers.optimizer(jax_model.params, training)
    params, state = jax_model.params, transform.init(jax_model.params)
    update = jax.jit(transform.update)
    for seed in range(2):
        random = np.random.default_rng(seed)
        gradients = {n: random.normal(size=p.shape).astype(dtype) for n, p in params.items()}
        for n, p in torch_model.named_parameters():
            p.grad = torch.from_numpy(gradients[n])
        torch_optimizer.step(0.01, torch.tensor(True))
        updates, state = update(gradients, state, params)
        params = {n: p - 0.01 * updates[n] for n, p in params.items()}
    expected = {n: p.detach() for n, p in torch_model.named_parameters()} | torch_optimizer.state()
    arrays = {**params, **jax_optimizers.named(state)}
    assert arrays.keys() == expected.keys()
    return max(difference(arrays[n], expected[n]) for n in arrays)


def curve_difference(name, dtype, **settings):
    """Compare losses and gradient norms of ten steps, and the weights and state after them."""
    torch_model, jax_model = pair(name, dtype, layers=1)
    defaults = {"steps": 10, "batch": 5, "learning_rate": 3e-3, "clip": 0.5, "optimizer": "muon"}
    defaults |= {"evaluate_every": 10**6, "precision": "float32", "compile": False}
    training = TrainingConfig(**{**defaults, **settings})
    texts = TEXT[:500], TEXT[500:]
    torch_trainer = Trainer(torch_model, NextToken(torch_model, *texts, training), training)
    jax_trainer = jax_train.Trainer(jax_model, *texts, training)
    worst = 0.0
    for _ in range(10):
        expected, step = torch_trainer.advance(), jax_trainer.advance()
        for name in ("step", "tokens", "learning_rate"):
            assert getattr(step, name) == getattr(expected, name)
        for name in ("loss", "gradient_norm", *(["validation"] if step.validation else [])):
            worst = max(worst, abs(getattr(step, name) - getattr(expected, name)))
    assert step.validation is not None
    expected, state = torch_trainer.state(), jax_trainer.state()
    assert [*state] == [*expected]
    assert all(state[part].keys() == expected[part].keys() for part in state)
    states = (difference(state[part][n], expected[part][n]) for part in state for n in state[part])
    return worst, max(states)


MAIN = ["gpt2", "modern", *(f"rung {rung}" for rung in LADDER)]
QUICK = ("gpt2", "modern", "rung stacked")


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_in_float64(name):
    check_logits_and_gradients(name, "float64")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MAIN]
)
def test_logits_and_gradients_in_float32(name):
    check_logits_and_gradients(name, "float32")


def check_logits_and_gradients(name, dtype):
    logits, gradients = model_difference(name, dtype)
    assert logits <= BOUNDS[dtype]
    assert gradients <= BOUNDS[dtype]


@pytest.mark.parametrize(("dtype", "optimizer"), [("float64", "muon"), ("float32", "adamw")])
@pytest.mark.parametrize("name", MAIN)
def test_two_steps_of_an_optimizer(name, dtype, optimizer):
    assert optimizer_difference(name, dtype, optimizer) <= BOUNDS[dtype]


@pytest.mark.parametrize(("dtype", "optimizer"), [("float64", "adamw"), ("float32", "muon")])
@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_two_steps_of_an_optimizer_in_the_other_precision(name, dtype, optimizer):
    assert optimizer_difference(name, dtype, optimizer) <= BOUNDS[dtype]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MAIN]
)
def test_ten_steps_of_the_same_batches(name):
    curves, _ = curve_difference(name, "float32")
    assert curves <= 1e-4


@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_ten_steps_of_adamw_in_float64(name):
    curves, states = curve_difference(name, "float64", optimizer="adamw")
    assert curves <= 1e-6  # PyTorch's trainer sums the parts of a loss in float32
    assert states <= 1e-10


@pytest.mark.parametrize("micro_batch", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_ten_steps_with_micro_batches_and_label_smoothing(micro_batch):
    settings = {"micro_batch": micro_batch, "label_smoothing": 0.1}
    _, states = curve_difference("gpt2, dropout", "float64", **settings)
    assert states <= 1e-10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_initial_values_are_identical(name, seed):
    changes, rung = MODELS[name]
    of = config(**changes)
    attention = multi_head if rung is None else jax_of_rung(rung)
    torch_attention = torch_gpt.multi_head if rung is None else torch_gpt.of_rung(rung)
    expected = torch_weights.to_arrays(GPT(of, torch_attention, seed=seed))
    for key in (seed, jax.random.key(seed)):
        arrays = jax_weights.to_arrays(gpt.init(of, key, attention))
        assert arrays.keys() == expected.keys()
        assert all(np.array_equal(arrays[n], expected[n]) for n in arrays)
