"""The two engines held to each other: the same checkpoint, the same numbers.

Bounds: 1e-5 in float32 and 1e-10 in float64, of logits, gradients and one step of an optimiser; ten
steps of the same batches give loss curves within 1e-4. `make docs` writes what was reached.
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
    """The same weights in both engines."""
    changes, rung = MODELS[name]
    of = config(**changes, **more)
    attention = multi_head if rung is None else jax_of_rung(rung)
    arrays = {n: a.astype(dtype) for n, a in lively(of, attention.shapes(of)).items()}
    torch_attention = torch_gpt.multi_head if rung is None else torch_gpt.of_rung(rung)
    theirs = GPT(of, torch_attention).to(getattr(torch, dtype))
    torch_weights.fill(theirs, arrays)
    params = {n: jnp.asarray(a) for n, a in arrays.items()}
    return theirs, Model(params, of, attention)


def apart(one, other):
    """The largest difference, as a share of the largest number where that is above 1."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    assert one.shape == other.shape
    return np.abs(one - other).max() / max(1.0, np.abs(other).max())


def model_apart(name, dtype):
    """Of the logits, and of all gradients of the loss."""
    theirs, ours = pair(name, dtype, layers=1)
    inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]
    logits = theirs.train()(torch.from_numpy(inputs), SPEC)
    wanted = torch.from_numpy(targets).flatten()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted).backward()

    @jax.jit
    def ask(params):
        of = (ours.config, ours.attention)
        found = gpt.forward(params, inputs, *of, SPEC)
        return found, jax.grad(jax_train.loss)(params, inputs, targets, *of, SPEC)

    found, gradients = ask(ours.params)
    assert found.dtype == dtype
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    assert gradients.keys() == expected.keys()
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())
    worst = max(apart(gradients[n], expected[n]) for n in gradients)
    return apart(found, logits.detach()), worst


def optimizer_apart(name, dtype, optimizer):
    """Of the parameters and of the optimiser's state, after two steps with the same gradients.

    With gradients of their own even so small a difference as that of rounding can be a whole step
    apart: Adam divides by the size of the gradient, and that of a key's bias is 0 but for rounding.
    """
    theirs, ours = pair(name, dtype)
    training = TrainingConfig(optimizer=optimizer)
    one = torch_optimizers.Optimizer(theirs, training)
    transform = jax_optimizers.optimizer(ours.params, training)
    params, state = ours.params, transform.init(ours.params)
    for number in range(2):
        random = np.random.default_rng(number)
        given = {n: random.normal(size=p.shape).astype(dtype) for n, p in params.items()}
        for n, p in theirs.named_parameters():
            p.grad = torch.from_numpy(given[n])
        one.step(0.01)
        updates, state = transform.update(given, state, params)
        params = {n: p - 0.01 * updates[n] for n, p in params.items()}
    expected = {n: p.detach() for n, p in theirs.named_parameters()} | one.state()
    found = {**params, **jax_optimizers.named(state)}
    assert found.keys() == expected.keys()
    return max(apart(found[n], expected[n]) for n in found)


def curves_apart(name, dtype, **settings):
    """Of the losses and norms of ten steps; and of the weights and the state after them."""
    theirs, ours = pair(name, dtype, layers=1)
    usual = {"steps": 10, "batch": 5, "learning_rate": 3e-3, "clip": 0.5, "optimizer": "muon"}
    usual |= {"evaluate_every": 10**6, "precision": "float32", "compile": False}
    training = TrainingConfig(**{**usual, **settings})
    texts = TEXT[:500], TEXT[500:]
    one = Trainer(theirs, NextToken(theirs, *texts, training), training)
    other = jax_train.Trainer(ours, *texts, training)
    worst = 0.0
    for _ in range(10):
        there, here = one.advance(), other.advance()
        same = ("step", "tokens", "learning_rate")
        assert [getattr(here, n) for n in same] == [getattr(there, n) for n in same]
        for each in ("loss", "gradient_norm", *(["validation"] if here.validation else [])):
            worst = max(worst, abs(getattr(here, each) - getattr(there, each)))
    assert here.validation is not None
    expected, found = one.state(), other.state()
    assert [*found] == [*expected]
    assert all(found[part].keys() == expected[part].keys() for part in found)
    states = (apart(found[part][n], expected[part][n]) for part in found for n in found[part])
    return worst, max(states)


ASKED = ["gpt2", "modern", *(f"rung {rung}" for rung in LADDER)]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float64") for name in MODELS), *((name, "float32") for name in ASKED)],
)
def test_logits_and_gradients(name, dtype):
    logits, gradients = model_apart(name, dtype)
    assert logits <= BOUNDS[dtype]
    assert gradients <= BOUNDS[dtype]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", ASKED)
def test_one_step_of_an_optimiser(name, dtype, optimizer):
    assert optimizer_apart(name, dtype, optimizer) <= BOUNDS[dtype]


QUICK = ("gpt2", "modern", "rung stacked", "rung tiled")  # the others take three seconds each, too


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ASKED]
)
def test_ten_steps_of_the_same_batches(name):
    curves, _ = curves_apart(name, "float32")
    assert curves <= 1e-4


@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_ten_steps_of_adamw_in_float64(name):
    curves, states = curves_apart(name, "float64", optimizer="adamw")
    assert curves <= 1e-6  # PyTorch's trainer sums the parts of a loss in float32
    assert states <= 1e-10


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_ten_steps_cut_into_micro_batches_with_smooth_labels(micro_batch):
    settings = {"micro_batch": micro_batch, "label_smoothing": 0.1}
    _, states = curves_apart("gpt2, dropout", "float64", **settings)
    assert states <= 1e-10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_first_values_are_the_same_bits(name, seed):
    changes, rung = MODELS[name]
    of = config(**changes)
    attention = multi_head if rung is None else jax_of_rung(rung)
    torch_attention = torch_gpt.multi_head if rung is None else torch_gpt.of_rung(rung)
    expected = torch_weights.to_arrays(GPT(of, torch_attention, seed=seed))
    for key in (seed, jax.random.key(seed)):
        found = jax_weights.to_arrays(gpt.init(of, key, attention))
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[n], expected[n]) for n in found)
