"""A GPT's weights between memory and disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from headway.checkpoints import files
from headway.ladder.rungs import rung_named
from headway.torch.gpt import GPT, multi_head, of_rung
from headway.training.runs import Run, RunConfig


def build(config: RunConfig) -> GPT:
    """The model of a run, with its first values."""
    attention = multi_head if config.rung is None else of_rung(rung_named(config.rung))
    return GPT(config.model, attention, seed=config.training.seed)


def to_arrays(model: GPT) -> dict[str, np.ndarray]:
    """Every parameter once, by name, as NumPy arrays; on a CPU they share its memory."""
    return {name: p.numpy(force=True) for name, p in model.named_parameters()}


def fill(model: GPT, tensors: Mapping[str, np.ndarray]) -> None:
    """Give a model these values. Raises ValueError when names or shapes are not the model's."""
    wanted = dict(model.named_parameters())
    for name in sorted(wanted.keys() | tensors.keys()):
        there, here = (
            tuple(some[name].shape) if name in some else None for some in (tensors, wanted)
        )
        if there != here:
            raise ValueError(f"weights of another model: {name} is {there} there, {here} here")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(torch.from_numpy(tensors[name]))


def load(run: Run, checkpoint: Path | None = None) -> GPT:
    """The model of a run with the weights of a checkpoint, by default the last.

    Raises ValueError when a file is damaged or the weights are not the model's.
    """
    model = build(run.config)
    checkpoint = files.latest(run.checkpoints) if checkpoint is None else checkpoint
    tensors, _ = files.load(checkpoint)
    try:
        fill(model, tensors)
    except ValueError as error:
        raise ValueError(f"{checkpoint} does not fit {run.path}/config.json: {error}") from None
    return model
