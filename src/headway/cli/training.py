"""Functions of `headway train` and `headway translate train`: resume a run, train to the end."""

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from headway.cli.progress import interrupts, preparing, progress, warn
from headway.engines import engine_named
from headway.training import loop, session, speed
from headway.training.loop import Step
from headway.training.runs import Run
from headway.training.session import Session


def resumed(run: Run, given: dict[str, Any], engine: str | None, device: str | None) -> Session:
    """Resume a run from its last checkpoint. given: the options of the command line.

    Exits if the run is finished. Raises ValueError for an option that cannot change.
    """
    config = run.config
    steps, micro_batch = given.pop("steps", None), given.pop("micro_batch", None)
    config.require_unchanged(given)
    done = loop.last_step(run)
    if done == config.training.steps and (steps or done) <= done:
        print(
            f"run {run.path.name!r} is finished after {done:,} steps; "
            f"train it further with --resume {run.path.name} --steps {2 * done}"
        )
        sys.exit(0)
    if steps is not None and steps > config.training.steps:
        warn(
            f"the learning rate schedule ended at step {config.training.steps:,} "
            f"and now ends at step {steps:,}"
        )
    with preparing() as show:
        chosen = engine_named(engine or loop.engine_of(run))
        group = chosen.join(device)
        chosen.keep_memory()
        started = session.resume(
            run, chosen, device, steps=steps, micro_batch=micro_batch, processes=group, show=show
        )
    for difference in started.differences:
        warn(f"{difference}; the last bits of the results may differ")
    return started


def follow(
    started: Session, command: str, *, on_step: Callable[[Step], str | None] = lambda step: None
) -> None:
    """Train to the end with a progress bar, and show a sample; Ctrl-C stops after a step.

    command: the command that resumes the run. on_step: called after every step; the message that it
    returns, if any, is printed.
    """
    run, trainer, training = started.run, started.trainer, started.config.training
    console = Console(highlight=False, soft_wrap=True)
    machine = trainer.machine()
    how = "".join(
        [
            f", {count} processes" if (count := trainer.processes.count) > 1 else "",
            ", in JAX" if machine["engine"] == "jax" else "",
            ", compiled" if training.compile and machine["engine"] == "torch" else "",
            f", from step {trainer.step:,}" if trainer.step else "",
        ]
    )
    console.print(
        f"{started.examples.summary}; {trainer.parameters:,} parameters\n"
        f"{training.optimizer} on {trainer.device_name}, {training.precision}{how}"
    )
    ends: list[tuple[float, int]] = []  # of the steps of this process
    with progress(console, training.steps) as show, interrupts() as interrupted:

        def moved(step: Step, seconds: float) -> None:
            ends.append((seconds, step.tokens))
            show(step.step, step.loss, step.validation, step.tokens / seconds)
            message = on_step(step)
            if message:
                console.print(Text(message, style="yellow"))

        def saved() -> None:
            if trainer.step < training.steps and trainer.processes.rank == 0:
                sample = started.sample(brief=True)
                console.print(Text(f"sample at step {trainer.step:,}: {sample}", style="dim"))

        started.fit(on_step=moved, on_checkpoint=saved, interrupted=interrupted)
    trainer.processes.leave()
    if trainer.step < training.steps:
        console.print(
            f"stopped after step {trainer.step:,}; the checkpoint is in {run.checkpoints}\n"
            f"resume with: {command} --resume {run.path.name}"
        )
        sys.exit(130)
    if trainer.processes.rank > 0:
        return
    # Long lines are wrapped inside the frame.
    panel = Panel(Text(started.sample()), title="a sample", title_align="left")
    console.print(panel, soft_wrap=False)
    last = run.logged()[-1]
    console.print(
        f"validation loss {last['validation']:.3f} nats per token after {last['seconds']:,.0f} s; "
        f"the run is in {run.path}"
    )
    console.print(_speed(started, ends), end="")


def _speed(started: Session, ends: list[tuple[float, int]]) -> str:
    """A line about the speed and the MFU; empty if it cannot be computed.

    ends: for each step, the time at which it ended, and the number of tokens so far.
    """
    config, seconds = started.config, speed.step_time([second for second, _ in ends])
    if not seconds or config.translates:
        return ""
    rate = (ends[-1][1] - ends[-2][1]) / seconds
    trainer = started.trainer
    count, kind = ["1", *trainer.device.split()][-2:]  # such as "4 gpu"
    peak = int(count) * trainer.processes.count * speed.peak(trainer.product, kind)
    operations = speed.operations(config.gpt, trainer.parameters, config.window)
    return (
        f"{rate:,.0f} tokens/s in a step without evaluation; MFU {operations * rate / peak:.0%}: "
        f"{operations * rate / 1e12:,.3g} of the {peak / 1e12:,.3g} TFLOP/s of a matrix product\n"
    )
