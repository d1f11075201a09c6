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
    length
        Number of tokens in a window of text; by default the context of the model.
    batch
        Number of windows of text in a batch; for pairs of sentences, the maximum number of tokens,
        counting both languages and the padding.
    micro_batch
        Number of windows that are processed at a time, for a batch that does not fit in memory; the
        gradient is still that of the mean loss over the batch.
    optimizer
        adamw for all parameters, or muon for the matrices of the blocks and adamw for the rest.
    learning_rate
        Maximum learning rate, for both optimizers.
    warmup
        Fraction of the steps in which the learning rate rises.
    weight_decay
        Weight decay of the matrices.
    label_smoothing
        Fraction of the target's probability that is spread over all tokens (Szegedy et al. 2016);
        the validation loss is computed without it.
    clip
        Maximum norm of the gradient; a larger gradient is scaled down to it.
    evaluate_every
        Steps between two evaluations on the held-out data.
    evaluation_windows
        Maximum number of windows, or pairs, in an evaluation.
    save_every
        Steps between two checkpoints.
    precision
        Number format of the computation; by default bfloat16 if it is faster on the hardware.
    compile
        Whether to use torch.compile; by default if the run is long enough for it to save time.
    activation_checkpointing
        Whether the backward pass computes each block again instead of keeping its activations,
        which takes a third more operations and much less memory (Chen et al. 2016).
    separate_documents
        Whether a token sees only the tokens of its own document, in a text of several documents.
    seed
        The same seed gives the same run.
    """

    steps: int = 1000
    length: int | None = None
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
    activation_checkpointing: bool = False
    separate_documents: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "evaluate_every", "evaluation_windows", "save_every")
        for name in (*counts, "micro_batch", "length"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1", value)
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

    def is_evaluated(self, step: int) -> bool:
        """Whether the validation loss is computed after this step."""
        return step == self.steps or step % self.evaluate_every == 0


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {what} (got {value!r})")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly to its maximum, then falls to a tenth of it along a cosine (Loshchilov and
    Hutter 2017, SGDR, without restarts).
    """
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(done, 1.0)))
