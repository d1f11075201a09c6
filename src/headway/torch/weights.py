"""Build a model and load its weights from a run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headway.ladder.rungs import rung_named
from headway.models.gpt import GPTConfig
from headway.torch.gpt import GPT, multi_head, of_rung
from headway.torch.seq2seq import Seq2Seq
from headway.training import loop
from headway.training.loop import require_same_shapes
from headway.training.runs import Run, RunConfig


def build(config: RunConfig, device: str = "cpu") -> Any:
    """Build the model of a run, a GPT or a Seq2Seq, with initial weights.

    device: "meta" for a GPT whose parameters have no values yet.
    """
    if config.translates:
        return Seq2Seq(config.seq2seq, seed=config.training.seed)
    attention = multi_head if config.rung is None else of_rung(rung_named(config.rung))
    with torch.device(device):
        seed = None if device == "meta" else config.training.seed
        return GPT(config.gpt, attention, seed=seed)


def assemble(
    config: GPTConfig,
    parameters: Iterable[tuple[str, Tensor]],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> GPT:
    """Build a GPT from all its parameters, by name; by default in their own dtype.

    A parameter that already has the device and the dtype is not copied.
    """
    with torch.device("meta"):  # no memory for the values that are replaced
        model = GPT(config, seed=None)
    for name, value in parameters:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value.to(device, dtype)))
    if config.tied:
        model.head.weight = model.embedding.weight
    return model


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return each parameter once, by name, as a NumPy array that shares memory on a CPU."""
    return {name: p.numpy(force=True) for name, p in model.named_parameters()}


def fill(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy these values into a model. Raises ValueError if names or shapes differ."""
    parameters = dict(model.named_parameters())
    require_same_shapes(tensors, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(tensors[name]))


def load(run: Run, checkpoint: Path | None = None) -> Any:
    """Load the model of a run with the weights of a checkpoint, by default the last one.

    Raises ValueError if a file is damaged or the weights belong to another model.
    """
    model = build(run.config)
    fill(model, loop.weights(run, checkpoint, dict(model.named_parameters())))
    return model
