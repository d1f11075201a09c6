"""The loop around the steps, whatever engine takes them: the log, the checkpoints, the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from headway.checkpoints import files
from headway.training.runs import Run, RunConfig

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
    """A model on its way, in any engine. step: how many steps are done."""

    step: int

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
            good = files.latest(run.checkpoints)
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
    about = {"step": trainer.step, "config": asdict(config), "machine": trainer.machine()}
    files.save(run.checkpoints, trainer.step, trainer.state(), about)
    files.keep(run.checkpoints, _KEPT)


def resume(trainer: Trainer, run: Run, config: RunConfig) -> list[str]:
    """Go on from the last checkpoint. Returns what differs on this machine, so that bits may.

    A run that was killed before its first checkpoint begins. Raises ValueError when the checkpoint
    is damaged, lacks something or is of another config.
    """
    if not files.found(run.checkpoints):
        return []
    checkpoint = files.latest(run.checkpoints)
    state = {}
    for part in trainer.state():
        state[part], about = files.load(checkpoint, part)
    try:
        began = RunConfig.from_json(json.dumps(about["config"]))
        began.require_same(config, f"in {run.path}/config.json")
        differences = trainer.restore(about["step"], state, about["machine"])
    except KeyError as error:
        raise ValueError(f"{checkpoint} lacks {error}: it cannot be gone on from") from error
    run.forget_after(trainer.step)
    return differences


def _is_saved(run: Run, step: int) -> bool:
    return (run.checkpoints / files.name(step)).is_dir()
