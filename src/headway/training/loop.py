"""The training loop of every task and engine: steps, log and checkpoints."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from headway.training import checkpoints, memory
from headway.training.checkpoints import Tensors
from headway.training.processes import Processes, on_first
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

_AHEAD = 2  # steps that the device has not finished when the next one is started
_KEPT = 2  # checkpoints: the last one, and the one before in case the last is damaged


@dataclass(frozen=True)
class Step:
    """The result of one step. step: its number, from 1. Losses are in nats per token."""

    step: int
    tokens: int
    loss: float
    learning_rate: float
    gradient_norm: float
    validation: float | None


class NotFinite(ValueError):  # noqa: N818 - clear without the suffix Error
    """The loss or its gradient is NaN or infinite; the message says where this occurs first."""

    @classmethod
    def at(cls, step: int, loss: float, where: str) -> Self:
        """The error of a step. where: the first value that is not finite."""
        advice = "a lower --learning-rate or --clip may help"
        what = f"loss of step {step} is {loss}"
        if isfinite(loss):
            what = f"gradient of step {step} is not finite"
        return cls(f"the {what}: {where}; {advice}")


@runtime_checkable
class Pending(Protocol):
    """A step that the device may still compute."""

    def is_ready(self) -> bool:
        """Whether `result` would not wait."""

    def result(self) -> Step:
        """Wait for the step. Raises NotFinite if the loss or the gradient is not finite."""


class Trainer(Protocol):
    """A model in training, in either engine.

    step: the number of started steps. device: the kind of device that it uses. parameters: the
    number of trained parameters.
    """

    step: int

    @property
    def config(self) -> TrainingConfig: ...

    @property
    def model(self) -> Any: ...

    @property
    def device(self) -> str: ...

    @property
    def device_name(self) -> str:
        """The device with the name of its model, for messages."""

    @property
    def parameters(self) -> int: ...

    @property
    def processes(self) -> Processes:
        """The processes that train together; each of them has a trainer."""

    def product(self, size: int) -> Callable[[], object]:
        """Return a function that multiplies two square matrices, in the precision of the steps.

        It waits for the result.
        """

    def start(self) -> Pending:
        """Start the next step, without waiting for the one before.

        If the loss or the gradient is not finite, neither this step nor any after it changes the
        weights, until its `result` is read.
        """

    def advance(self) -> Step:
        """Take one step and wait for it. Raises NotFinite, and keeps the weights before it."""
        return self.start().result()

    def state(self) -> Mapping[str, Tensors]:
        """Return all that the next step depends on, except config and data: arrays by part.

        Of several processes, each returns the rows that it has.
        """

    def restore(
        self, step: int, state: Mapping[str, Mapping[str, np.ndarray]], machine: Mapping[str, Any]
    ) -> list[str]:
        """Restore a state and the machine's settings; return the differences between the machines.

        Raises KeyError for missing tensors and ValueError for those of another model.
        """

    def machine(self) -> dict[str, Any]:
        """Return what must be equal on two machines for a resumed run to be equal bit for bit.

        The number of processes is one of these values.
        """


def fit(
    trainer: Trainer,
    run: Run,
    config: RunConfig,
    *,
    on_step: Callable[[Step, float], object] = lambda step, seconds: None,
    on_checkpoint: Callable[[], object] = lambda: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Train to the last step, or until `interrupted()` is true after a step.

    Of several processes, only the first writes the log; all stop if one of them is interrupted.

    on_step: called after every step, with the seconds of training so far. on_checkpoint: called
    after every checkpoint. Raises NotFinite, whose message names the last good checkpoint,
    ValueError if a step needs more memory than there is, and OSError if the disk is full or the
    folder is not writable. Earlier checkpoints are kept.
    """
    try:
        _fit(trainer, run, config, on_step, on_checkpoint, interrupted)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_exhausted(error):
            raise
        training = config.training
        raise ValueError(
            f"out of memory on {trainer.device_name}, with "
            f"{training.micro_batch or training.batch} of the {training.batch} windows of a batch "
            "at a time; resume with a smaller --micro-batch, which gives the same result in less "
            "memory, or start again with a smaller model or --context; the last checkpoint is "
            f"{checkpoints.latest(run.checkpoints)}"
        ) from error


def _fit(
    trainer: Trainer,
    run: Run,
    config: RunConfig,
    on_step: Callable[[Step, float], object],
    on_checkpoint: Callable[[], object],
    interrupted: Callable[[], bool],
) -> None:
    steps, save_every = config.training.steps, config.training.save_every
    processes, saved = trainer.processes, trainer.step
    if on_first(processes, lambda: _is_saved(run, trainer.step)) == str(False):
        save(trainer, run, config)
    seconds_before = max((record["seconds"] for record in run.logged()), default=0.0)
    began = time.perf_counter() - seconds_before
    pending: deque[Pending] = deque()

    def report(until: int) -> None:
        """Report the steps that are ready, and wait for the oldest until so many are left."""
        while pending and (len(pending) > until or pending[0].is_ready()):
            try:
                step = pending.popleft().result()
            except NotFinite as error:
                good = checkpoints.latest(run.checkpoints)
                raise NotFinite(f"{error}; the last good checkpoint is {good}") from None
            seconds = time.perf_counter() - began
            if processes.rank == 0:
                run.log({**asdict(step), "seconds": round(seconds, 3)})
            on_step(step, seconds)

    def is_interrupted() -> bool:
        return any(processes.exchange("stop" if interrupted() else ""))

    while trainer.step < steps and not is_interrupted():
        pending.append(trainer.start())
        report(until=_AHEAD)
        if trainer.step % save_every == 0 or trainer.step == steps:
            report(until=0)
            save(trainer, run, config)
            saved = trainer.step
            on_checkpoint()
    report(until=0)
    if trainer.step != saved:
        save(trainer, run, config)


def save(trainer: Trainer, run: Run, config: RunConfig) -> None:
    """Write a checkpoint of everything that the next step depends on; keep the one before."""
    settings = json.loads(config.to_json())
    about = {"step": trainer.step, "config": settings, "machine": trainer.machine()}
    checkpoints.save(run.checkpoints, trainer.step, trainer.state(), about, trainer.processes)
    if trainer.processes.rank == 0:
        checkpoints.keep(run.checkpoints, _KEPT)


def resume(trainer: Trainer, run: Run, config: RunConfig) -> list[str]:
    """Restore the last checkpoint; return the differences between the machines.

    With differences, the results may differ in their last bits from those of an uninterrupted run.
    A run without a checkpoint starts at step 0. Raises ValueError if the checkpoint is damaged,
    incomplete or has another config.
    """
    if not checkpoints.complete(run.checkpoints):
        return []
    checkpoint = checkpoints.latest(run.checkpoints)
    state = {}
    for part in trainer.state():
        state[part], about = checkpoints.load(checkpoint, part)
    try:
        saved = RunConfig.from_json(json.dumps(about["config"]))
        # These may differ: the number of steps may have been increased, the micro-batch changed.
        free = {name: getattr(saved.training, name) for name in ("steps", "micro_batch")}
        current = replace(config, training=replace(config.training, **free))
        saved.require_same(current, f"in {run.path}/config.json")
        differences = trainer.restore(about["step"], state, about["machine"])
    except KeyError as error:
        raise ValueError(f"cannot resume from {checkpoint}: {error} is missing") from error
    if trainer.processes.rank == 0:
        run.forget_after(trainer.step)
    return differences


def last_step(run: Run) -> int:
    """Return the step of the last checkpoint; 0 if there is none."""
    if not checkpoints.complete(run.checkpoints):
        return 0
    return checkpoints.step_of(checkpoints.latest(run.checkpoints))


def engine_of(run: Run) -> str:
    """Return the name of the engine that wrote the last checkpoint; "torch" if there is none."""
    if not checkpoints.complete(run.checkpoints):
        return "torch"
    _, about = checkpoints.load(checkpoints.latest(run.checkpoints))
    return str(about["machine"]["engine"])


def weights(run: Run, checkpoint: Path | None, like: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """Load the weights of a checkpoint, by default the last one.

    like: the parameters of the model, by name. Raises ValueError if a file is damaged or the names
    or shapes of the weights are not those of `like`.
    """
    checkpoint = checkpoints.latest(run.checkpoints) if checkpoint is None else checkpoint
    tensors, _ = checkpoints.load(checkpoint)
    try:
        require_same_shapes(tensors, like)
    except ValueError as error:
        raise ValueError(f"{checkpoint} does not fit {run.path}/config.json: {error}") from None
    return tensors


def require_same_shapes(given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError when the names or shapes of weights are not the expected ones."""
    for name in sorted(given.keys() | expected.keys()):
        got, wanted = (
            f"of shape {tuple(arrays[name].shape)}" if name in arrays else "absent"
            for arrays in (given, expected)
        )
        if got != wanted:
            raise ValueError(f"weights of another model: {name} must be {wanted} (it is {got})")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the differences between two machines. Raises KeyError for missing entries."""
    then = {"processes": 1, **then}  # earlier versions had no others
    return [f"{name} was {then[name]}, is {now[name]}" for name in now if then[name] != now[name]]


def _is_saved(run: Run, step: int) -> bool:
    return (run.checkpoints / checkpoints.name(step)).is_dir()
