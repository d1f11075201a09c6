"""Time to a good model: the recipe char-cpu against the plainest trainer, on Shakespeare.

    HEADWAY_DATA=... python -m benchmarks.time_to_good --output docs/bench/time_to_good.json

The time is the number of steps until the loss is low enough, the mean over the seeds, times the
median time of a step, which is measured with all sides in turns. The loss is the mean over the last
tenth of the text in consecutive windows of 64, every ten steps. It must be 1.90 nats per character,
or what nanoGPT's recipe for a CPU ends with. Headway's settings were chosen on the tenth before.
The plain trainer has the best of three learning rates; its schedule of half as many steps, which
nobody else measures, shows what a shorter schedule gains.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from benchmarks import report
from benchmarks.plain import NANOGPT, STEPS, PlainTrainer
from benchmarks.sides import Side, in_turns, machine
from torch import nn

from headway.data.batches import evaluation, split
from headway.torch import devices, weights
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training import recipes

GOOD, EVERY, AT_ONCE, WINDOWS = 1.90, 10, 5, 10**6
SHORT = 250  # steps of Headway's schedule
BASELINE, NANO = "plain", "plain, nanoGPT's learning rate"

Run = tuple[Callable[[], object], Callable[[], float]]  # a step, and the loss
Make = Callable[[int], Run]  # from a seed


def plain(seed: int, **schedule: Any) -> Run:
    plan = recipes.plan(recipes.read("char-cpu"))
    tokens, held_out = split(plan.tokenizer.encode(plan.source), plan.config.model.context)
    vocabulary = plan.config.model.vocabulary
    trainer = PlainTrainer(torch.from_numpy(tokens), vocabulary, seed, **schedule)
    windows = [torch.from_numpy(part) for part in evaluation(held_out, 64, WINDOWS)]

    @torch.no_grad()
    def loss() -> float:
        total = sum(
            nn.functional.cross_entropy(
                trainer.model(inputs).flatten(0, 1), targets.flatten(), reduction="sum"
            ).item()
            for inputs, targets in zip(*(part.split(64) for part in windows), strict=True)
        )
        return total / windows[0].numel()

    return trainer.advance, loss


def headway(seed: int, **settings: Any) -> Run:
    changes = {"seed": seed, "steps": SHORT, **settings}
    plan = recipes.plan(recipes.override(recipes.read("char-cpu"), changes))
    tokens = split(plan.tokenizer.encode(plan.source), plan.config.model.context)
    model, training = weights.build(plan.config), plan.config.training
    count = sum(parameter.numel() for parameter in model.parameters())
    total = training.steps * training.batch * plan.config.model.context
    training = devices.suited(count, total, training, torch.device("cpu"))
    training = replace(training, evaluate_every=10**9, evaluation_windows=WINDOWS)
    trainer = Trainer(model, NextToken(model, *tokens, training), training)
    return trainer.advance, trainer.evaluate


# Each side with the steps of its schedule, and the step from which its loss is computed.
SIDES: dict[str, tuple[Make, int, int]] = {
    NANO: (partial(plain, peak=NANOGPT), STEPS, STEPS),
    BASELINE: (plain, STEPS, 900),
    "plain, half the steps": (partial(plain, steps=STEPS // 2), STEPS // 2, 850),
    "headway": (headway, SHORT, 180),
    "headway, float32": (partial(headway, precision="float32"), SHORT, 180),
}


def curve(make: Make, seed: int, steps: int, first: int) -> Iterator[tuple[int, float]]:
    """Train; yield the steps and the loss from the step `first` on."""
    advance, loss = make(seed)
    for step in range(1, steps + 1):
        advance()
        if step >= first and (step % EVERY == 0 or step == steps):
            yield step, loss()


def needed(curve: list[tuple[int, float]], good: float) -> int | None:
    """The number of steps until the loss is good."""
    return next((step for step, loss in curve if loss <= good), None)


def steps(make: Make) -> Callable[[], None]:
    """Take some steps, whose time is measured."""
    advance, _ = make(0)
    for _ in range(AT_ONCE):
        advance()
    return lambda: [advance() for _ in range(AT_ONCE)] and None


def tables(results: report.Report) -> str:
    hidden = ("curves", "steps to good", "steps to nanoGPT's end")
    rows = [{n: row[n] for n in row if n not in hidden} for row in results["rows"]]
    return report.tables({**results, "rows": rows})


def main() -> None:
    parser = report.options(__doc__, rounds=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    options = parser.parse_args()
    sides = {name: Side(steps, make) for name, (make, _, _) in SIDES.items()}
    spent = in_turns({name: side.seconds for name, side in sides.items()}, options.rounds)
    for side in sides.values():
        side.close()
    curves: dict[str, list[list[tuple[int, float]]]] = {name: [] for name in SIDES}
    for seed in options.seeds:
        for name, (make, count, first) in SIDES.items():
            found = []
            for step, loss in curve(make, seed, count, first):
                found.append((step, round(loss, 4)))
                if loss <= GOOD - 0.01 and name != NANO:
                    break  # the rest of the schedule changes nothing
            curves[name].append(found)
            print(f"seed {seed}, {name}: {found[-1]}", flush=True)
    ends = statistics.mean(curve[-1][1] for curve in curves[NANO])
    rows = [row(name, curves[name], spent[name], ends) for name in SIDES]
    results = {"machine": machine(), "good": GOOD, "nanoGPT ends with": ends}
    results["rows"] = compared(rows)
    report.save(results, options.output)


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add how many times as fast each side is as the plain ones."""
    for target, name in (("good", BASELINE), ("nanoGPT's end", NANO)):
        base = next(row for row in rows if row["what"] == name)[f"seconds to {target}"]
        for row in rows:
            seconds = row[f"seconds to {target}"]
            is_known = None not in (base, seconds)
            row[f"times as fast to {target}"] = report.digits(base / seconds) if is_known else None
    return rows


def row(
    name: str, curves: list[list[tuple[int, float]]], spent: list[float], ends: float
) -> dict[str, Any]:
    """The steps and seconds of a side: None if a seed does not get there."""
    milliseconds = [1000 * seconds / AT_ONCE for seconds in spent]
    step = report.middle(milliseconds)
    result = {"what": name, "ms per step": step, "quartiles": report.quartiles(milliseconds)}
    for target, good in (("good", GOOD), ("nanoGPT's end", ends)):
        counts = [needed(curve, good) for curve in curves]
        if name == NANO and target != "good":
            counts = [curve[-1][0] for curve in curves]
        is_reached = None not in counts
        mean = statistics.mean(counts) if is_reached else None
        result[f"steps to {target}"] = counts
        result["seeds"] = len(counts)
        result[f"mean steps to {target}"] = mean
        result[f"seconds to {target}"] = report.digits(mean * step / 1000) if is_reached else None
    return {**result, "curves": curves}


if __name__ == "__main__":
    main()
