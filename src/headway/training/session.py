"""A run in training: begun, resumed and followed to its end, for every task and engine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headway.training import loop
from headway.training.loop import Trainer
from headway.training.recipes import Plan
from headway.training.runs import Run, RunConfig
from headway.training.task import Examples, Progress, task_named


class Engine(Protocol):
    """A module that trains and runs models."""

    def trainer(
        self, config: RunConfig, data: tuple[Any, Any], device: str | None = None
    ) -> Trainer:
        """A run at its first step; the settings that depend on the machine are decided.

        data: to train on, and held out. Raises ValueError for a device that does not exist here.
        """
        ...

    def keep_memory(self) -> None:
        """Let this process keep freed memory for the next step, where that makes it faster."""
        ...

    def load(self, run: Run, checkpoint: Path | None = None) -> Any:
        """The model of a run with the weights of a checkpoint, by default the last."""
        ...

    def logits(self, model: Any, tokens: np.ndarray) -> Any:
        """The logits for tokens (batch, tokens), without gradients and dropout."""
        ...

    def gradients(self, model: Any, inputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """The gradient of the mean loss without dropout, by the names of the parameters."""
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
        """`tokens` new tokens after each prompt; each item has the next token of every prompt."""
        ...


@dataclass(frozen=True)
class Session:
    """A run, the trainer that takes its steps, and its data.

    differences: what is not as it was when the run began, so that the results may differ in their
        last bits.
    """

    run: Run
    config: RunConfig
    engine: Engine
    trainer: Trainer
    examples: Examples
    differences: Sequence[str] = ()

    def sample(self, *, brief: bool = False) -> str:
        """A text that shows what the model can do so far."""
        task = task_named(self.config.task)
        return task.sample(
            self.engine, self.trainer.model, self.run.tokenizer, self.examples, brief=brief
        )

    def fit(self, **callbacks: Callable[..., Any]) -> None:
        """Train to the last step: see `training.loop.fit`, also for the callbacks."""
        loop.fit(self.trainer, self.run, self.config, **callbacks)


def begin(
    path: Path,
    plan: Plan,
    engine: Engine,
    device: str | None = None,
    *,
    show: Progress = lambda more, total: None,
) -> Session:
    """A new run. Its directory is made when everything that can be refused has been checked.

    show: called while the data become tokens. Raises ValueError for invalid settings and when the
    directory exists.
    """
    examples = _examples(plan, show)
    trainer = engine.trainer(plan.config, (examples.train, examples.validation), device)
    config = replace(plan.config, training=trainer.config)
    run = Run.create(path, config, plan.tokenizer, examples.files)
    return Session(run, config, engine, trainer, examples)


def resume(
    run: Run,
    engine: Engine,
    device: str | None = None,
    *,
    steps: int | None = None,
    show: Progress = lambda more, total: None,
) -> Session:
    """A run from its last checkpoint, with the settings and the data that it began with.

    steps: a larger number of steps than the run began with. Raises ValueError when the data have
    changed, when the checkpoint is damaged, and for fewer steps than before.
    """
    config = run.config
    if steps is not None:
        config = config.extended(steps)
    task = task_named(config.task)
    source, tokenizer = task.read(config.text), run.tokenizer
    now = replace(config, text_sha256=task.digest(source), tokenizer_sha256=tokenizer.fingerprint)
    config.require_same(now, "now")
    examples = _examples(Plan(config, tokenizer, source), show)
    trainer = engine.trainer(config, (examples.train, examples.validation), device)
    differences = loop.resume(trainer, run, config)
    run.rewrite(config, examples.files)
    return Session(run, config, engine, trainer, examples, differences)


def _examples(plan: Plan, show: Progress) -> Examples:
    task = task_named(plan.config.task)
    return task.examples(plan.source, plan.tokenizer, plan.config, show)
