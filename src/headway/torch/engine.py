"""PyTorch, as `headway.engines.Engine`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from headway.torch import devices, weights
from headway.torch.generate import generate
from headway.torch.gpt import GPT
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training.runs import Run, RunConfig

__all__ = ["generate", "load", "logits", "trainer"]


def trainer(
    config: RunConfig, tokens: tuple[np.ndarray, np.ndarray], device: str | None = None
) -> Trainer:
    """A run at its beginning; what its settings leave to the machine is decided."""
    place = devices.choose(device)
    model = weights.build(config).to(place)
    training = devices.suited(model, config.training, place)
    return Trainer(model, NextToken(model, *tokens, training), training)


def load(run: Run, checkpoint: Path | None = None) -> GPT:
    """The model of a run with the weights of a checkpoint, by default the last."""
    model: GPT = weights.load(run, checkpoint).eval()
    return model


def logits(
    model: GPT, tokens: Integer[np.ndarray, "batch tokens"]
) -> Float[Tensor, "batch tokens vocabulary"]:
    """What the model says of these tokens, without gradients and dropout."""
    training, place = model.training, next(model.parameters()).device
    try:
        with torch.no_grad():
            found: Tensor = model.eval()(torch.from_numpy(tokens).to(place))
        return found
    finally:
        model.train(training)
