"""Build a model and load its weights from a run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from headway.attention.arrays import Array
from headway.jax import gpt
from headway.jax.gpt import Model
from headway.jax.layers import Attention, Params, multi_head, of_rung
from headway.ladder.rungs import rung_named
from headway.training import loop
from headway.training.loop import require_same_shapes
from headway.training.runs import Run, RunConfig


def build(config: RunConfig) -> Model:
    """Build the model of a run with initial weights. Raises ValueError for translation models."""
    if config.translates:
        raise ValueError("JAX does not support translation models yet; use --engine torch")
    attention: Attention = multi_head if config.rung is None else of_rung(rung_named(config.rung))
    return Model(gpt.init(config.gpt, config.training.seed, attention), config.gpt, attention)


def to_arrays(params: Params) -> dict[str, np.ndarray]:
    """Return all parameters by name, as NumPy arrays."""
    return {name: np.asarray(value) for name, value in params.items()}


def filled(params: Params, tensors: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """Return parameters with these values. Raises ValueError if names or shapes differ."""
    require_same_shapes(tensors, params)
    return {name: jnp.asarray(tensors[name], value.dtype) for name, value in params.items()}


def load(run: Run, checkpoint: Path | None = None) -> Model:
    """Load the model of a run with the weights of a checkpoint, by default the last one.

    Raises ValueError if a file is damaged or the weights belong to another model.
    """
    model = build(run.config)
    tensors = loop.weights(run, checkpoint, model.params)
    return replace(model, params=filled(model.params, tensors))
