"""Start, resume and complete the training of a run, for every task and engine."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headway.models.gpt import GPTConfig
from headway.training import checkpoints, loop
from headway.training.loop import Trainer
from headway.training.recipes import Plan
from headway.training.runs import Run, RunConfig
from headway.training.task import Examples, Progress, task_named


class Engine(Protocol):
    """A module that trains and runs models."""

    def trainer(
        self, config: RunConfig, data: tuple[Any, Any], device: str | None = None, model: Any = None
    ) -> Trainer:
        """Create the trainer of a new run, and choose the settings that depend on the machine.

        data: the training and the validation data. model: the one whose weights to start from; by
        default the initial values. Raises ValueError for a device that this machine does not have.
        """
        ...

    def keep_memory(self) -> None:
        """Let this process keep freed memory for the next step, where that makes it faster."""
        ...

    @property
    def FRAMEWORK(self) -> str:  # noqa: N802 - a constant of a module
        """The argument `framework` of `safetensors.safe_open` for this engine."""

    def load(
        self,
        run: Run,
        checkpoint: Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Any:
        """Load the model of a run with the weights of a checkpoint, by default the last one.

        device: by default the fastest. dtype: by default that of the checkpoint.
        """
        ...

    def assemble(
        self,
        config: GPTConfig,
        parameters: Iterable[tuple[str, Any]],
        device: str | None = None,
        dtype: str | None = None,
    ) -> Any:
        """Build a GPT from all its parameters, by name; device and dtype as in `load`."""
        ...

    def parameters(self, model: Any) -> Mapping[str, Any]:
        """The parameters of a model by name, as arrays of the engine."""
        ...

    def logits(self, model: Any, tokens: np.ndarray) -> Any:
        """The logits for tokens (batch, tokens), without gradients and dropout."""
        ...

    def readout(self, model: Any, stream: np.ndarray) -> Any:
        """The logits of the residual stream (batch, tokens, width) after any layer.

        Applies the final norm, if the model has one, and the output layer; without gradients.
        """
        ...

    def losses(self, model: Any, tokens: np.ndarray) -> np.ndarray:
        """The loss of each token (batch, tokens - 1) after the first, in nats, as float64.

        tokens: (batch, tokens). Without gradients and dropout.
        """
        ...

    def gradients(self, model: Any, inputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Return the gradient of the mean loss, without dropout, by parameter name."""
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
        """Yield, `tokens` times, a list with the next token of every prompt."""
        ...


@dataclass(frozen=True)
class Session:
    """A run, the trainer that takes its steps, and its data.

    differences: what has changed on the machine since the last checkpoint was written; because of
        it, the results may differ in their last bits.
    """

    run: Run
    config: RunConfig
    engine: Engine
    trainer: Trainer
    examples: Examples
    differences: Sequence[str] = ()

    def sample(self, *, brief: bool = False) -> str:
        """Return an example of the model's current output; brief: in one line."""
        task = task_named(self.config.task)
        return task.sample(
            self.engine, self.trainer.model, self.run.tokenizer, self.examples, brief=brief
        )

    def fit(self, **callbacks: Callable[..., Any]) -> None:
        """Train to the last step; callbacks: the keyword arguments of `training.loop.fit`."""
        loop.fit(self.trainer, self.run, self.config, **callbacks)


def begin(
    path: Path,
    plan: Plan,
    engine: Engine,
    device: str | None = None,
    *,
    show: Progress = lambda more, total: None,
) -> Session:
    """Start a new run. Its directory is created last, after all settings have been checked.

    show: called while the data are tokenized. Raises ValueError for invalid settings and if the
    directory exists.
    """
    task, start = task_named(plan.config.task), plan.pretrained
    examples = task.examples(plan.source, plan.tokenizer, plan.config, show)
    model = None if start is None else start.load(engine, device)
    trainer = engine.trainer(plan.config, (examples.train, examples.validation), device, model)
    config = replace(plan.config, training=trainer.config)
    files = examples.files if start is None else {**examples.files, **start.files}
    run = Run.create(path, config, plan.tokenizer, files)
    return Session(run, config, engine, trainer, examples)


def resume(
    run: Run,
    engine: Engine,
    device: str | None = None,
    *,
    steps: int | None = None,
    micro_batch: int | None = None,
    show: Progress = lambda more, total: None,
) -> Session:
    """Resume a run from its last checkpoint, with its original settings and data.

    steps: a new number of steps, not smaller than before. micro_batch: a new number of windows at a
    time, which changes the results by rounding only. Raises ValueError if the data have
    changed, if the checkpoint is damaged, and for fewer steps than before.
    """
    config = run.config
    if steps is not None:
        config = config.extended(steps)
    if micro_batch is not None:
        config = replace(config, training=replace(config.training, micro_batch=micro_batch))
    task = task_named(config.task)
    source, tokenizer = task.read(config.text), run.tokenizer
    text_sha256 = task.sha256_of(source)
    now = replace(config, text_sha256=text_sha256, tokenizer_sha256=tokenizer.fingerprint)
    config.require_same(now, "now")
    examples = task.examples(source, tokenizer, config, show)
    if config.pretrained is not None and not checkpoints.complete(run.checkpoints):
        raise ValueError(
            f"run {run.path.name!r} stopped before its first checkpoint, so the weights of "
            f"{config.pretrained} are not in it; remove the run and start it again"
        )
    trainer = engine.trainer(config, (examples.train, examples.validation), device)
    differences = loop.resume(trainer, run, config)
    run.rewrite(config, examples.files)
    return Session(run, config, engine, trainer, examples, differences)
