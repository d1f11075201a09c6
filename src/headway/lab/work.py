"""The runs of an experiment: as many at a time as there are cores, each on a thread of its own.

A run that is there is not repeated, and one that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from headway.cache import atomic
from headway.engines import Name
from headway.lab.experiments import Job
from headway.training.loop import Step
from headway.training.recipes import Plan
from headway.training.runs import Run
from headway.training.session import Engine, Session

RUNS = "runs"  # the folder of all runs, in the folder of the lab
RESULT, FAILED, HEALTH = "result.json", "failed.json", "health.jsonl"
GLANCE = 512  # tokens of the held-out text whose attention is looked at
SHOWN = 24  # tokens of the map
LOOK = 3.0  # seconds between two looks at the runs, which reads all their logs

_stop: Any = None  # of this worker: an event


class HasJobs(Protocol):
    """An experiment, or the race."""

    @property
    def jobs(self) -> tuple[Job, ...]: ...


def run(
    experiment: HasJobs,
    folder: Path,
    *,
    do: Callable[[Job, str], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    show: Callable[[], object] = lambda: None,
) -> dict[str, str]:
    """Do what is not done yet, until `stopped()`. Returns what went wrong with runs, by folder.

    do: trains one, in a process of its own; by default a GPT. show: called every LOOK seconds.
    Raises ValueError when another process works in the folder.
    """
    jobs = [job for job in experiment.jobs if not is_done(folder / job.folder)]
    wrong: dict[str, str] = {}
    if not jobs:
        return wrong
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    workers = min(workers_here(), len(jobs))
    with (
        _alone_in(folder),
        ProcessPoolExecutor(workers, context, _begin, (stop,)) as pool,
    ):
        try:
            with _no_interrupts():  # the workers inherit it
                waiting = {
                    pool.submit(do or _do, job, str(folder / job.folder)): job for job in jobs
                }
            while waiting:
                if stopped():
                    stop.set()
                    for future in waiting:
                        future.cancel()
                wait([each for each in waiting if not each.done()], LOOK, FIRST_COMPLETED)
                for future in [each for each in waiting if each.done()]:
                    job = waiting.pop(future)
                    said = _complaint(future, folder / job.folder)
                    if said:
                        wrong[job.folder] = said
                show()
        finally:
            stop.set()
    return wrong


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two processes must not train the same run."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another process works in {folder}: wait for it, or stop it"
            ) from None
        yield


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Within, Ctrl-C waits; a process that is begun within never gets it."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def workers_here() -> int:
    """How many runs at a time: one on an accelerator, else one on each core."""
    import torch

    from headway.torch import devices

    if devices.choose().type != "cpu":
        return 1
    return torch.get_num_threads()


def is_done(path: Path) -> bool:
    """Whether this run has come to its end, good or bad."""
    return (path / RESULT).is_file() or (path / FAILED).is_file()


def _complaint(future: Future[None], path: Path) -> str:
    """Why a run did not end; empty when it did, when it was stopped and when it never began."""
    if future.cancelled():
        return ""
    try:
        future.result()
    except BrokenProcessPool:
        begun = (path / "config.json").is_file()
        return "its process was killed: is there enough memory?" if begun else ""
    except Exception as error:  # of the settings, the disk
        return str(error) or type(error).__name__
    return ""


# In the workers


def _begin(stop: Any) -> None:
    """A worker begins."""
    global _stop
    _stop = stop
    os.environ["OMP_NUM_THREADS"] = os.environ["NPROC"] = "1"  # PyTorch's, and JAX's


def is_stopped() -> bool:
    """Whether the parent wants no more of it, or is there no more."""
    parent = multiprocessing.parent_process()
    return bool(_stop.is_set()) or (parent is not None and not parent.is_alive())


def _do(job: Job, folder: str) -> None:
    """Train it to the end, or until the parent stops it, and look at what came of it."""
    if is_stopped():
        return
    from headway.data.batches import evaluation
    from headway.engines import engine_named
    from headway.lab import health
    from headway.training import recipes

    place_of_worker()
    engine = engine_named(job.engine)
    plan = recipes.plan(job.settings)
    path = Path(folder)

    def look(session: Session, done: Step) -> None:
        context = plan.config.model.context
        windows = evaluation(session.examples.validation, context, max(1, GLANCE // context))
        found = health.look(engine, session.trainer.model, *windows)
        with (path / HEALTH).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": done.step, **found._asdict()}) + "\n")

    session = to_the_end(path, plan, engine, look)
    if session is not None:
        result = _result(job.engine, session)
        write(path / RESULT, {**result, "differences": session.differences})


def place_of_worker() -> Any:
    """The device; on a CPU this process then takes one thread."""
    import torch

    from headway.torch import devices

    place = devices.choose()
    if place.type == "cpu":
        torch.set_num_threads(1)
    return place


def to_the_end(
    path: Path,
    plan: Plan,
    engine: Engine,
    evaluated: Callable[[Session, Step], object] = lambda session, step: None,
) -> Session | None:
    """Begin or resume a run, and train it to its last step.

    evaluated: called after each step that has a validation loss. Returns None when the run was
    stopped before its end, and when its loss became NaN or infinite, which is recorded.
    """
    from headway.training import loop, session

    engine.keep_memory()
    if (path / "config.json").is_file():
        started = session.resume(Run.open(path), engine)
        _forget_after(started.trainer.step, path / HEALTH)
    else:
        started = session.begin(path, plan, engine)

    def look(done: Step, seconds: float) -> None:
        if done.validation is None:
            return
        if not math.isfinite(done.validation):
            raise loop.NotFinite(f"the validation loss after step {done.step} is {done.validation}")
        evaluated(started, done)

    try:
        started.fit(on_step=look, interrupted=is_stopped)
    except loop.NotFinite as error:  # it would happen again
        write(path / FAILED, {"failed": str(error)})
        return None
    return started if started.trainer.step == started.config.training.steps else None


def _forget_after(step: int, file: Path) -> None:
    """Take the lines of later steps out, and a last one that was cut off: they come again."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        with atomic(file) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def write(file: Path, found: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")


def _result(name: Name, session: Session) -> dict[str, Any]:
    """What is known at the end of a run, except for its curves."""
    from headway.bench.machine import machine
    from headway.lab import health

    trainer, tokenizer, engine = session.trainer, session.run.tokenizer, session.engine
    shown = session.examples.validation[: min(SHOWN, trainer.model.config.context)].astype("int64")
    maps, _ = health.seen(engine, trainer.model, shown[None])
    return {
        "machine": {
            **machine(trainer.device),
            "engine": name,
            "precision": trainer.config.precision,
        },
        "parameters": trainer.parameters,
        "tokens_per_second": _speed(session.run.logged(), trainer),
        # JAX keeps the memory of the step before for the next.
        "memory": _step_memory(trainer) if name == "torch" else None,
        "sample": session.sample(),
        "words": [tokenizer.decode([token]) for token in shown.tolist()],
        "maps": [layer[0].round(3).tolist() for layer in maps],
    }


def _step_memory(trainer: Any) -> int | None:
    """The most that one more step takes; None where it cannot be known."""
    from headway.bench import measure
    from headway.training.loop import NotFinite

    trainer.config = replace(trainer.config, evaluate_every=trainer.step + 2)  # a step, no more
    try:
        return measure.peak_memory(trainer.advance, trainer.device)
    except NotFinite:
        return None


def _speed(log: Sequence[dict[str, Any]], trainer: Any) -> float | None:
    """Tokens a second of the steps between which nothing was evaluated; None without any."""
    pairs = [
        (before, after)
        for before, after in pairwise(log)
        if before["validation"] is None and after["validation"] is None
    ]
    spent = sum(after["seconds"] - before["seconds"] for before, after in pairs)
    tokens = trainer.config.batch * trainer.model.config.context
    return len(pairs) * tokens / spent if spent > 0 else None
