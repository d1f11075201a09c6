"""The settings of a training run, and the learning rate that follows from them."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Raises ValueError for invalid numbers.

    Attributes
    ----------
    steps
        Number of training steps, each on one batch.
    batch
        Windows of text in a batch; for pairs of sentences tokens, with both languages and the
        padding counted.
    micro_batch
        Windows at a time, where the memory is too small for the batch; the gradient is still that
        of the mean over the batch.
    optimizer
        adamw for all parameters, or muon for the matrices of the blocks and adamw for the rest.
    learning_rate
        The highest learning rate, of both optimizers.
    warmup
        Share of the steps in which the learning rate rises.
    weight_decay
        Weight decay of the matrices.
    label_smoothing
        Share of the target's probability that is spread over all tokens (Szegedy et al. 2016); the
        validation loss is computed without it.
    clip
        Largest norm of the gradient.
    evaluate_every
        Steps between two evaluations on the held-out data.
    evaluation_windows
        Windows, or pairs, of an evaluation, at most.
    save_every
        Steps between two checkpoints.
    precision
        Number format of the computation; by default bfloat16 where the hardware is fast with it.
    compile
        Whether to use torch.compile; by default where the run is long enough to repay it.
    seed
        The same seed gives the same run.
    """

    steps: int = 1000
    batch: int = 16
    micro_batch: int | None = None
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
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            _require(value > 0 and math.isfinite(value), name, "above 0", value)
        _require(0 <= self.warmup <= 1, "warmup", "between 0 and 1", self.warmup)
        smoothing = self.label_smoothing
        _require(0 <= smoothing < 1, "label_smoothing", "at least 0 and below 1", smoothing)
        _require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        _require(self.seed >= 0, "seed", "at least 0", self.seed)
        choices = {"optimizer": ("adamw", "muon"), "precision": (None, "float32", "bfloat16")}
        for name, allowed in choices.items():
            value, names = getattr(self, name), ", ".join(filter(None, allowed))
            _require(value in allowed, name, f"one of {names}", value)


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {what} (got {value!r})")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of a step, from 0: it rises linearly, then falls along a cosine to a tenth.

    Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(done, 1.0)))
