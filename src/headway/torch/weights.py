"""A model's weights between memory and disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headway.ladder.rungs import rung_named
from headway.torch.gpt import GPT, multi_head, of_rung
from headway.torch.seq2seq import Seq2Seq
from headway.training import loop
from headway.training.loop import require_same_shapes
from headway.training.runs import Run, RunConfig


def build(config: RunConfig) -> Any:
    """The model of a run, a GPT or a Seq2Seq, with its first values."""
    if config.translates:
        return Seq2Seq(config.model, seed=config.training.seed)
    attention = multi_head if config.rung is None else of_rung(rung_named(config.rung))
    return GPT(config.model, attention, seed=config.training.seed)


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Every parameter once, by name, as NumPy arrays; on a CPU they share its memory."""
    return {name: p.numpy(force=True) for name, p in model.named_parameters()}


def fill(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Give a model these values. Raises ValueError when names or shapes are not the model's."""
    wanted = dict(model.named_parameters())
    require_same_shapes(tensors, wanted)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(torch.from_numpy(tensors[name]))


def load(run: Run, checkpoint: Path | None = None) -> Any:
    """The model of a run with the weights of a checkpoint, by default the last.

    Raises ValueError when a file is damaged or the weights are not the model's.
    """
    model = build(run.config)
    fill(model, loop.weights(run, checkpoint, dict(model.named_parameters())))
    return model
