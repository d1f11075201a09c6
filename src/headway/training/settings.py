"""The settings of a training run, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Raises ValueError for numbers that make no sense.

    batch: windows a step; of a translation tokens, padding and both languages counted. micro_batch:
    how many windows at a time, where the memory is short; the gradient is the mean over all tokens
    of the batch all the same.
    optimizer: AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.
    learning_rate: the highest, of both. warmup: the share of the steps in which it rises.
    weight_decay: of matrices only. label_smoothing: the share of a target's probability that is
    spread over all tokens (Szegedy et al. 2016); the validation loss is without it.
    clip: the largest norm of all gradients together.
    evaluate_every: steps between evaluations; evaluation_windows: how many windows, or pairs, at
    most.
    save_every: steps between checkpoints.
    precision, compile: None until the run is made, then what suits the machine.
    """

    steps: int = 1000
    batch: int = 16
    micro_batch: int | None = None  # the whole batch
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    label_smoothing: float = 0.0
    clip: float = 1.0
    evaluate_every: int = 50
    evaluation_windows: int = 64
    save_every: int = 200
    precision: Literal["float32", "bfloat16"] | None = None
    compile: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "evaluate_every", "evaluation_windows", "save_every")
        for name in counts if self.micro_batch is None else (*counts, "micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more: {getattr(self, name)} is not")
        for name in ("learning_rate", "clip"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} is above 0: {getattr(self, name)} is not")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share from 0 to 1: {self.warmup} is not")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is a share from 0 to below 1: {self.label_smoothing} is not"
            )
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is 0 or more: {self.weight_decay} is not")
        if self.seed < 0:
            raise ValueError(f"a seed is 0 or more: {self.seed} is not")
        choices = {"optimizer": ("adamw", "muon"), "precision": (None, "float32", "bfloat16")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                said = ", ".join(each for each in allowed if each)
                raise ValueError(f"{name} is one of {said}: {getattr(self, name)!r} is not")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Of step 0, 1 ...: up in a line, then down along a cosine to a tenth.

    Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(done, 1.0)))
