"""Start, resume and complete the training of a run, for every task and engine."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headway.models.gpt import GPTConfig
from headway.training import checkpoints, loop, memory
from headway.training.loop import Trainer
from headway.training.processes import (
    ALONE,
    Processes,
    first_here_then_others,
    on_first,
    require_equal,
    together,
)
from headway.training.recipes import Plan
from headway.training.runs import Run, RunConfig
from headway.training.task import Examples, Progress, task_named


class Engine(Protocol):
    """A module that trains and runs models."""

    def join(self, device: str | None = None) -> Processes:
        """Join the processes that `torchrun` started; a process that was started alone is alone.

        Raises ValueError if they do not find each other, and for too few devices.
        """
        ...

    def trainer(
        self,
        config: RunConfig,
        data: tuple[Any, Any],
        device: str | None = None,
        model: Any = None,
        processes: Processes = ALONE,
    ) -> Trainer:
        """Create the trainer of a new run, and choose the settings that depend on the machine.

        data: the training and the validation data. model: the one whose weights to start from; by
        default the initial values. processes: those that train together, one trainer in each.
        Raises ValueError for a device that this machine does not have.
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
        model = self.trainer.model
        if self.trainer.processes.count > 1:
            # Each process has a part of the model, so this one loads all of it.
            try:
                model = self.engine.load(self.run)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_exhausted(error):
                    raise
                return "(no sample: the complete model does not fit in the memory of this process)"
        return task.sample(self.engine, model, self.run.tokenizer, self.examples, brief=brief)

    def fit(self, **callbacks: Callable[..., Any]) -> None:
        """Train to the last step; callbacks: the keyword arguments of `training.loop.fit`."""
        loop.fit(self.trainer, self.run, self.config, **callbacks)


def begin(
    path: Path,
    plan: Plan,
    engine: Engine,
    device: str | None = None,
    *,
    processes: Processes = ALONE,
    show: Progress = lambda more, total: None,
) -> Session:
    """Start a new run. Its directory is created last, after all settings have been checked.

    processes: those that train together. show: called while the data are tokenized. Raises
    ValueError for invalid settings and if the directory exists.
    """
    _require_enough(plan.config, processes)
    task, start = task_named(plan.config.task), plan.pretrained
    examples = first_here_then_others(
        processes, lambda: task.examples(plan.source, plan.tokenizer, plan.config, show)
    )
    model = None if start is None else start.load(engine, device)
    data = (examples.train, examples.validation)
    trainer = engine.trainer(plan.config, data, device, model, processes)
    config = replace(plan.config, training=trainer.config)
    _require_equal(config, trainer)
    files = examples.files if start is None else {**examples.files, **start.files}
    on_first(processes, lambda: Run.create(path, config, plan.tokenizer, files).path)
    return Session(Run(path), config, engine, trainer, examples)


def resume(
    run: Run,
    engine: Engine,
    device: str | None = None,
    *,
    steps: int | None = None,
    micro_batch: int | None = None,
    processes: Processes = ALONE,
    show: Progress = lambda more, total: None,
) -> Session:
    """Resume a run from its last checkpoint, with its original settings and data.

    steps: a new number of steps, not smaller than before. micro_batch: a new number of windows at a
    time, which changes the results by rounding only, as does another number of processes.
    Raises ValueError if the data have changed, if the checkpoint is damaged, and for fewer steps
    than before.
    """
    config = run.config
    if steps is not None:
        config = config.extended(steps)
    if micro_batch is not None:
        config = replace(config, training=replace(config.training, micro_batch=micro_batch))
    _require_enough(config, processes)
    task, tokenizer = task_named(config.task), run.tokenizer

    def read() -> Examples:
        source = task.read(config.text)
        text_sha256 = task.sha256_of(source)
        now = replace(config, text_sha256=text_sha256, tokenizer_sha256=tokenizer.fingerprint)
        config.require_same(now, "now")
        return task.examples(source, tokenizer, config, show)

    examples = first_here_then_others(processes, read)
    if config.pretrained is not None and not checkpoints.complete(run.checkpoints):
        raise ValueError(
            f"run {run.path.name!r} stopped before its first checkpoint, so the weights of "
            f"{config.pretrained} are not in it; remove the run and start it again"
        )
    data = (examples.train, examples.validation)
    trainer = engine.trainer(config, data, device, processes=processes)
    _require_equal(config, trainer)
    differences = together(processes, lambda: loop.resume(trainer, run, config))
    on_first(processes, lambda: run.rewrite(config, examples.files))
    return Session(run, config, engine, trainer, examples, differences)


def _require_enough(config: RunConfig, processes: Processes) -> None:
    """Raise ValueError if the processes have nothing to do."""
    if config.task != "next-token" and processes.count > 1:
        raise ValueError("several processes can train a GPT on a text only; start one process")
    if config.training.batch < processes.count:
        raise ValueError(
            f"batch must be at least the number of processes, {processes.count} "
            f"(got {config.training.batch})"
        )


def _require_equal(config: RunConfig, trainer: Trainer) -> None:
    """Raise ValueError if the processes have other settings, data or versions."""
    machine = trainer.machine()
    versions = {
        "the version of Headway": metadata.version("headway"),
        f"the version of {machine['engine']}": machine["version"],
        "the kind of device": machine["device"],
    }
    require_equal(trainer.processes, {**versions, **config.flat()})
