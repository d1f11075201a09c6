"""JAX, as `headway.engines.Engine`."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from headway.attention.arrays import Array
from headway.jax import gpt, sharding
from headway.jax.generate import generate
from headway.jax.gpt import Model
from headway.jax.train import Trainer
from headway.jax.weights import build, load
from headway.training import memory
from headway.training.runs import RunConfig

__all__ = ["generate", "load", "logits", "trainer"]


def trainer(
    config: RunConfig, tokens: tuple[np.ndarray, np.ndarray], device: str | None = None
) -> Trainer:
    """A run at its beginning, over as many devices as divide its batch.

    bfloat16 where they have it. Raises ValueError for a kind of device that is not there.
    """
    there = devices(device)
    fast = there[0].platform != "cpu"
    if not fast:
        memory.keep(of_any_size=True)
    training = replace(
        config.training,
        precision=config.training.precision or ("bfloat16" if fast else "float32"),
        compile=config.training.compile or False,  # of PyTorch, should it go on there
    )
    layout = sharding.over(there[: gcd(len(there), training.batch)])
    return Trainer(build(config), *tokens, training, layout)


def devices(kind: str | None) -> list[jax.Device]:
    """All of this kind, by default the best. Raises ValueError when there is none."""
    try:
        return jax.devices(kind)
    except RuntimeError:
        raise ValueError(f"JAX has no {kind} here: leave --device out") from None


def logits(
    model: Model, tokens: Integer[np.ndarray, "batch tokens"]
) -> Float[Array, "batch tokens vocabulary"]:
    """What the model says of these tokens, without dropout."""
    return _forward(model.params, jnp.asarray(tokens), model.config, model.attention)


_forward = jax.jit(gpt.forward, static_argnames=("config", "attention"))
