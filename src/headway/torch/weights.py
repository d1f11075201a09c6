"""A GPT's weights between memory and disk."""

from __future__ import annotations

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
    """Every parameter once, by name, as NumPy arrays that share its memory."""
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def load(run: Run, checkpoint: Path | None = None) -> GPT:
    """The model of a run with the weights of a checkpoint, by default the last.

    Raises ValueError when the names or shapes in the file are not the model's.
    """
    model = build(run.config)
    checkpoint = files.latest(run.checkpoints) if checkpoint is None else checkpoint
    tensors = files.load(checkpoint)
    wanted = dict(model.named_parameters())
    if {n: p.shape for n, p in wanted.items()} != {n: t.shape for n, t in tensors.items()}:
        raise ValueError(f"{checkpoint} is of another model than {run.path}/config.json says")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(torch.from_numpy(tensors[name]))
    return model
