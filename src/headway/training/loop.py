"""The loop around the steps, whatever engine takes them: the log, the checkpoints, the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headway.training import checkpoints
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

_KEPT = 2  # checkpoints: the last, and the one before should the last be damaged


@dataclass(frozen=True)
class Step:
    """What one step did. step counts from 1; losses are in nats a token."""

    step: int
    tokens: int
    loss: float
    learning_rate: float
    gradient_norm: float
    validation: float | None


class NotFinite(ValueError):  # noqa: N818 - the name says it
    """The loss or its gradient is no number any more; the message says where it began."""


class Trainer(Protocol):
    """A model on its way, in any engine.

    step: how many steps are done. place: what it runs on. parameters: how many numbers are learnt.
    """

    step: int

    @property
    def config(self) -> TrainingConfig: ...

    @property
    def model(self) -> Any: ...

    @property
    def place(self) -> str: ...

    @property
    def parameters(self) -> int: ...

    def advance(self) -> Step:
        """Take one step. Raises NotFinite, the weights untouched, when it leads nowhere."""

    def state(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """All that the next step depends on, but for the config and the text: parts of tensors."""

    def restore(
        self, step: int, state: Mapping[str, Mapping[str, np.ndarray]], machine: Mapping[str, Any]
    ) -> list[str]:
        """Go back to a state, and to the machine's settings then; what could not be the same.

        Raises KeyError for what is missing and ValueError for what is of another model.
        """

    def machine(self) -> dict[str, Any]:
        """What must be the same for a resumed run to go on bit for bit."""


def fit(
    trainer: Trainer,
    run: Run,
    config: RunConfig,
    *,
    each: Callable[[Step, float], object] = lambda step, seconds: None,
    saved: Callable[[], object] = lambda: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Train to the last step, or until `interrupted()`, which ends after a step that is whole.

    each: told of every step, with the seconds trained so far. saved: called at every
    checkpoint. Raises NotFinite, with the checkpoint to go back to, and OSError when the disk
    is full or the folder may not be written; what was saved before stays.
    """
    steps, save_every = config.training.steps, config.training.save_every
    if not _is_saved(run, trainer.step):
        save(trainer, run, config)
    spent = max((record["seconds"] for record in run.logged()), default=0.0)
    began = time.perf_counter() - spent
    while trainer.step < steps and not interrupted():
        try:
            done = trainer.advance()
        except NotFinite as error:
            good = checkpoints.latest(run.checkpoints)
            raise NotFinite(f"{error}; the last good checkpoint is {good}") from None
        seconds = time.perf_counter() - began
        run.log({**asdict(done), "seconds": round(seconds, 3)})
        each(done, seconds)
        if trainer.step % save_every == 0 or trainer.step == steps:
            save(trainer, run, config)
            saved()
    if not _is_saved(run, trainer.step):
        save(trainer, run, config)


def save(trainer: Trainer, run: Run, config: RunConfig) -> None:
    """Write a checkpoint of all that the next step depends on; keep the one before as well."""
    settings = json.loads(config.to_json())
    about = {"step": trainer.step, "config": settings, "machine": trainer.machine()}
    checkpoints.save(run.checkpoints, trainer.step, trainer.state(), about)
    checkpoints.keep(run.checkpoints, _KEPT)


def resume(trainer: Trainer, run: Run, config: RunConfig) -> list[str]:
    """Go on from the last checkpoint. Returns what differs on this machine, so that bits may.

    A run that was killed before its first checkpoint begins. Raises ValueError when the checkpoint
    is damaged, lacks something or is of another config.
    """
    if not checkpoints.complete(run.checkpoints):
        return []
    checkpoint = checkpoints.latest(run.checkpoints)
    state = {}
    for part in trainer.state():
        state[part], about = checkpoints.load(checkpoint, part)
    try:
        began = RunConfig.from_json(json.dumps(about["config"]))
        same = replace(config, training=replace(config.training, steps=began.training.steps))
        began.require_same(same, f"in {run.path}/config.json")  # the number of steps may grow
        differences = trainer.restore(about["step"], state, about["machine"])
    except KeyError as error:
        raise ValueError(f"{checkpoint} lacks {error}: it cannot be gone on from") from error
    run.forget_after(trainer.step)
    return differences


def last_step(run: Run) -> int:
    """The step of the last checkpoint; 0 where there is none."""
    if not checkpoints.complete(run.checkpoints):
        return 0
    return checkpoints.step_of(checkpoints.latest(run.checkpoints))


def engine_of(run: Run) -> str:
    """The name of the engine that wrote the last checkpoint; torch where there is none."""
    if not checkpoints.complete(run.checkpoints):
        return "torch"
    _, about = checkpoints.load(checkpoints.latest(run.checkpoints))
    return str(about["machine"]["engine"])


def weights(run: Run, checkpoint: Path | None, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a checkpoint, by default the run's last, for a model with parameters `like`.

    Raises ValueError when a file is damaged or the weights are not the model's.
    """
    checkpoint = checkpoints.latest(run.checkpoints) if checkpoint is None else checkpoint
    tensors, _ = checkpoints.load(checkpoint)
    try:
        require_same_shapes(tensors, like)
    except ValueError as error:
        raise ValueError(f"{checkpoint} does not fit {run.path}/config.json: {error}") from None
    return tensors


def require_same_shapes(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ValueError when names or shapes of weights are not those of the model here."""
    for name in sorted(there.keys() | here.keys()):
        one, other = (tuple(some[name].shape) if name in some else None for some in (there, here))
        if one != other:
            raise ValueError(f"weights of another model: {name} is {one} there, {other} here")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the machine has changed, in words. Raises KeyError for what is missing."""
    return [f"{name} was {then[name]}, is {now[name]}" for name in now if then[name] != now[name]]


def _is_saved(run: Run, step: int) -> bool:
    return (run.checkpoints / checkpoints.name(step)).is_dir()
