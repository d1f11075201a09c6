"""The two engines behind one face: what the verbs, the lab and the explorer ask of either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from headway.extras import require

if TYPE_CHECKING:
    import numpy as np

    from headway.training.loop import Trainer
    from headway.training.runs import Run, RunConfig

Name = Literal["torch", "jax"]


class Engine(Protocol):
    """A module that trains and runs GPTs."""

    def trainer(
        self, config: RunConfig, tokens: tuple[np.ndarray, np.ndarray], device: str | None = None
    ) -> Trainer:
        """A run at its beginning; what its settings leave to the machine is decided.

        tokens: to learn from, and held out. Raises ValueError for a device that is not there.
        """
        ...

    def load(self, run: Run, checkpoint: Path | None = None) -> Any:
        """The model of a run with the weights of a checkpoint, by default the last."""
        ...

    def logits(self, model: Any, tokens: np.ndarray) -> Any:
        """What the model says of tokens (batch, tokens), without gradients and dropout."""
        ...

    def generate(
        self,
        model: Any,
        prompts: Sequence[np.ndarray],
        *,
        tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[list[int]]:
        """`tokens` new tokens after each prompt, one of each prompt at a time."""
        ...


def engine(name: Name = "torch") -> Engine:
    """The engine of this name, loaded. Raises ValueError when its library is missing."""
    if name == "torch":
        from headway.torch import engine as found  # late: either takes seconds to load

        return found
    require("jax", "the JAX engine")
    from headway.jax import engine as other

    return other
