"""Train the runs of an experiment in parallel, with one thread per run and one run per core.

Finished runs are not repeated; interrupted ones resume from their last checkpoint.
"""

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

from headway import cache
from headway.engines import Name
from headway.lab.experiments import Job
from headway.training.loop import Step
from headway.training.recipes import Plan
from headway.training.runs import Run
from headway.training.session import Engine, Session

RUNS = "runs"  # the folder of all runs, in the folder of the lab
RESULT, FAILED, HEALTH = "result.json", "failed.json", "health.jsonl"
HEALTH_TOKENS = 512  # validation tokens for the training health
MAP_TOKENS = 24  # tokens of the attention maps
PAUSE = 3.0  # seconds between two updates of the progress, which reads all logs

_stop: Any = None  # an event, in a worker


def run(
    jobs: Sequence[Job],
    folder: Path,
    *,
    do: Callable[[Job, str], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    show: Callable[[], object] = lambda: None,
) -> dict[str, str]:
    """Train the runs that are not finished, until `stopped()`. Returns errors by folder.

    do: trains one run in a worker process; by default a GPT. show: called every PAUSE seconds.
    Raises ValueError if another process uses the folder.
    """
    missing = [job for job in jobs if not is_done(folder / job.folder)]
    errors: dict[str, str] = {}
    if not missing:
        return errors
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    workers = min(workers_here(), len(missing))
    with cache.locked(folder), ProcessPoolExecutor(workers, context, _begin, (stop,)) as pool:
        try:
            with _no_interrupts():  # inherited by the workers
                waiting = {
                    pool.submit(do or _do, job, str(folder / job.folder)): job for job in missing
                }
            while waiting:
                if stopped():
                    stop.set()
                    for future in waiting:
                        future.cancel()
                wait([future for future in waiting if not future.done()], PAUSE, FIRST_COMPLETED)
                for future in [future for future in waiting if future.done()]:
                    job = waiting.pop(future)
                    error = _error_of(future, folder / job.folder)
                    if error:
                        errors[job.folder] = error
                show()
        finally:
            stop.set()
    return errors


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Block Ctrl-C; processes that start within never receive it."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def workers_here() -> int:
    """Return the number of parallel runs: one on an accelerator, else one per core."""
    import torch

    from headway.torch import devices

    if devices.choose().type != "cpu":
        return 1
    return torch.get_num_threads()


def is_done(path: Path) -> bool:
    """Whether this run has finished or failed."""
    return (path / RESULT).is_file() or (path / FAILED).is_file()


def _error_of(future: Future[None], path: Path) -> str:
    """Return why a run failed; "" if it ended, was stopped or has not begun."""
    if future.cancelled():
        return ""
    try:
        future.result()
    except BrokenProcessPool:
        begun = (path / "config.json").is_file()
        return "its process was killed, perhaps for lack of memory" if begun else ""
    except Exception as error:  # such as invalid settings or a full disk
        return str(error) or type(error).__name__
    return ""


# In the workers


def _begin(stop: Any) -> None:
    """Initialize a worker."""
    global _stop
    _stop = stop
    os.environ["OMP_NUM_THREADS"] = os.environ["NPROC"] = "1"  # for PyTorch and JAX


def is_stopped() -> bool:
    """Whether the parent process requested a stop or has ended."""
    parent = multiprocessing.parent_process()
    return bool(_stop.is_set()) or (parent is not None and not parent.is_alive())


def _do(job: Job, folder: str) -> None:
    """Train a run to its end, or until it is stopped, and write its result."""
    if is_stopped():
        return
    from headway.data.batches import evaluation
    from headway.engines import engine_named
    from headway.lab import health
    from headway.training import recipes

    worker_device()
    engine = engine_named(job.engine)
    plan = recipes.plan(job.settings)
    path = Path(folder)

    def look(session: Session, done: Step) -> None:
        context = plan.config.model.context
        windows = evaluation(session.examples.validation, context, max(1, HEALTH_TOKENS // context))
        values = health.look(engine, session.trainer.model, *windows)
        with (path / HEALTH).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": done.step, **values._asdict()}) + "\n")

    session = to_the_end(path, plan, engine, look)
    if session is not None:
        write(path / RESULT, _result(job.engine, session))


def worker_device() -> Any:
    """Return the device; on a CPU, limit this process to one thread."""
    import torch

    from headway.torch import devices

    device = devices.choose()
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


def to_the_end(
    path: Path,
    plan: Plan,
    engine: Engine,
    evaluated: Callable[[Session, Step], object] = lambda session, step: None,
) -> Session | None:
    """Begin or resume a run and train it to its last step.

    evaluated: called after each step with a validation loss. Returns None if the run was stopped,
    or if its loss became NaN or infinite, which is recorded.
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
    except loop.NotFinite as error:  # training again would give the same
        write(path / FAILED, {"failed": str(error)})
        return None
    return started if started.trainer.step == started.config.training.steps else None


def _forget_after(step: int, file: Path) -> None:
    """Remove the lines of later steps and an incomplete last line, which will be repeated."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        with cache.atomic(file) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def write(file: Path, values: dict[str, Any]) -> None:
    """Write JSON; the file is never incomplete."""
    with cache.atomic(file) as temporary:
        temporary.write_text(json.dumps(values), encoding="utf-8")


def _result(name: Name, session: Session) -> dict[str, Any]:
    """Return the result of a finished run, without its curves."""
    from headway.bench.machine import machine
    from headway.lab import health

    trainer, tokenizer, engine = session.trainer, session.run.tokenizer, session.engine
    tokens = min(MAP_TOKENS, trainer.model.config.context)
    shown = session.examples.validation[:tokens].astype("int64")
    precision = trainer.config.precision
    maps, _ = health.seen(engine, trainer.model, shown[None])
    return {
        "machine": {**machine(trainer.device), "engine": name, "precision": precision},
        "parameters": trainer.parameters,
        "tokens_per_second": _speed(session.run.logged(), trainer),
        # JAX reuses the memory of the previous step.
        "memory": _step_memory(trainer) if name == "torch" else None,
        "sample": session.sample(),
        "words": [tokenizer.decode([token]) for token in shown.tolist()],
        "maps": [layer[0].round(3).tolist() for layer in maps],
        "differences": session.differences,
    }


def _step_memory(trainer: Any) -> int | None:
    """Return the peak memory of one more step; None if it is unknown."""
    from headway.bench import measure
    from headway.training.loop import NotFinite

    trainer.config = replace(trainer.config, evaluate_every=trainer.step + 2)  # no evaluation
    try:
        return measure.peak_memory(trainer.advance, trainer.device)
    except NotFinite:
        return None


def _speed(log: Sequence[dict[str, Any]], trainer: Any) -> float | None:
    """Return tokens per second between steps without an evaluation; None if there are none."""
    pairs = [
        (before, after)
        for before, after in pairwise(log)
        if before["validation"] is None and after["validation"] is None
    ]
    spent = sum(after["seconds"] - before["seconds"] for before, after in pairs)
    tokens = trainer.config.batch * trainer.model.config.context
    return len(pairs) * tokens / spent if spent > 0 else None
