"""The settings of a training run, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Raises ValueError for numbers that make no sense.

    batch: windows a step. warmup: the share of the steps in which the learning rate rises.
    weight_decay: of matrices only. clip: the largest norm of all gradients together.
    evaluate_every: steps between evaluations; evaluation_windows: how many windows, at most.
    """

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 50
    evaluation_windows: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "evaluate_every", "evaluation_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more: {getattr(self, name)} is not")
        for name in ("learning_rate", "clip"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} is above 0: {getattr(self, name)} is not")
        if self.seed < 0:
            raise ValueError(f"a seed is 0 or more: {self.seed} is not")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Of step 0, 1 ...: up in a line, then down along a cosine to a tenth.

    Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(done, 1.0)))
