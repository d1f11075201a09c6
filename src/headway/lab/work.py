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
from typing import Any

from headway.data.cache import whole
from headway.lab.experiments import Experiment, Job
from headway.training.runs import Run

RESULT, FAILED, HEALTH = "result.json", "failed.json", "health.jsonl"
GLANCE = 512  # tokens of the held-out text whose attention is looked at
SHOWN = 24  # tokens of the map
WRITTEN = 120  # tokens of the sample

_stop: Any = None  # of this worker: an event


def run(
    experiment: Experiment,
    folder: Path,
    *,
    stopped: Callable[[], bool] = lambda: False,
    show: Callable[[], object] = lambda: None,
) -> dict[str, str]:
    """Do what is not done yet, until `stopped()`. Returns what went wrong with runs, by folder.

    show: called about once a second. Raises ValueError when another process works in the folder.
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
                waiting = {pool.submit(_do, job, str(folder / job.folder)): job for job in jobs}
            while waiting:
                if stopped():
                    stop.set()
                    for future in waiting:
                        future.cancel()
                wait([each for each in waiting if not each.done()], 1.0, FIRST_COMPLETED)
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
    os.environ["OMP_NUM_THREADS"] = "1"


def _is_stopped() -> bool:
    """Whether the parent wants no more of it, or is there no more."""
    parent = multiprocessing.parent_process()
    return bool(_stop.is_set()) or (parent is not None and not parent.is_alive())


def _do(job: Job, folder: str) -> None:
    """Train it to the end, or until the parent stops it, and look at what came of it."""
    if _is_stopped():
        return
    import torch

    from headway.data.batches import evaluation, split
    from headway.data.tokens import prepared
    from headway.lab import health
    from headway.torch import devices, weights
    from headway.torch.tasks import NextToken
    from headway.torch.train import Trainer
    from headway.training import loop, recipes

    place = devices.choose()
    if place.type == "cpu":
        torch.set_num_threads(1)
    plan = recipes.plan(job.settings)
    context = plan.config.model.context
    tokens = split(prepared(plan.corpus, plan.tokenizer), context)
    model = weights.build(plan.config).to(place)
    config = replace(plan.config, training=devices.suited(model, plan.config.training, place))
    trainer = Trainer(model, NextToken(model, *tokens, config.training), config.training)
    path, differences = Path(folder), []
    if (path / "config.json").is_file():
        run_ = Run.open(path)
        differences = loop.resume(trainer, run_, config)
        _forget_after(trainer.step, path / HEALTH)
    else:
        run_ = Run.create(path, config, plan.tokenizer)
    inputs, _ = evaluation(tokens[1], context, max(1, GLANCE // context))
    windows = torch.from_numpy(inputs).to(place)

    def each(done: loop.Step, seconds: float) -> None:
        if done.validation is None:
            return
        if not math.isfinite(done.validation):
            raise loop.NotFinite(f"the validation loss after step {done.step} is {done.validation}")
        found = health.look(trainer, windows, done.gradient_norm)
        with (path / HEALTH).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": done.step, **found._asdict()}) + "\n")

    try:
        loop.fit(trainer, run_, config, each=each, interrupted=_is_stopped)
    except loop.NotFinite as error:  # it would be so again
        _write(path / FAILED, {"failed": str(error)})
        return
    if trainer.step == config.training.steps:
        result = _result(trainer, run_, plan.tokenizer, tokens[1])
        _write(path / RESULT, {**result, "differences": differences})


def _forget_after(step: int, file: Path) -> None:
    """Take the lines of later steps out, and a last one that was cut off: they come again."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        with whole(file) as aside:
            aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _write(file: Path, found: dict[str, Any]) -> None:
    with whole(file) as aside:
        aside.write_text(json.dumps(found), encoding="utf-8")


def _result(trainer: Any, run_: Run, tokenizer: Any, held_out: Any) -> dict[str, Any]:
    """What is known at the end of a run, but for its curves."""
    import torch

    from headway.bench.machine import machine
    from headway.lab import health
    from headway.torch.generate import generate

    shown = held_out[: min(SHOWN, trainer.model.config.context)].astype("int64")
    maps, _ = health.seen(trainer.model, torch.from_numpy(shown)[None].to(trainer.device))
    written = generate(trainer.model, [held_out[:1]], tokens=WRITTEN, temperature=0.8, top_p=0.95)
    sample = tokenizer.decode([*held_out[:1], *(token for (token,) in written)])
    return {
        "machine": {**machine(trainer.device.type), "precision": trainer.config.precision},
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "tokens_per_second": _speed(run_.logged(), trainer),
        "memory": _step_memory(trainer),
        "sample": sample,
        "words": [tokenizer.decode([token]) for token in shown],
        "maps": [layer[0].round(3).tolist() for layer in maps],
    }


def _step_memory(trainer: Any) -> int | None:
    """The most that one more step takes; None where it cannot be known."""
    from headway.bench import measure
    from headway.training.loop import NotFinite

    trainer.config = replace(trainer.config, evaluate_every=trainer.step + 2)  # a step, no more
    try:
        return measure.peak_memory(trainer.advance, trainer.device.type)
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
