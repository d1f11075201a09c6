"""Time to a good model: the recipe char-cpu against the plainest trainer, on Shakespeare.

    HEADWAY_DATA=... python -m benchmarks.time_to_good --output docs/bench/time_to_good.json

A model is good at 1.90 nats per character, the mean over the last tenth of the text in consecutive
windows of 64. Both sides train alternately, 20 steps at a time: plain until it is good, Headway
to its end. The time is that of training, without the evaluations. Three seeds, one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from benchmarks import report
from benchmarks.plain import STEPS, PlainTrainer
from benchmarks.sides import Side, machine
from torch import nn

from headway.data.batches import evaluation, split
from headway.torch import devices, weights
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training import recipes

GOOD, AT_ONCE, WINDOWS = 1.90, 20, 10**6

Work = Callable[[str], float]


def plain(seed: int) -> Work:
    plan = recipes.plan(recipes.read("char-cpu"))
    tokens, held_out = split(plan.tokenizer.encode(plan.source), plan.config.model.context)
    trainer = PlainTrainer(torch.from_numpy(tokens), plan.config.model.vocabulary, seed)
    windows = [torch.from_numpy(part) for part in evaluation(held_out, 64, WINDOWS)]

    def work(task: str) -> float:
        if task == "train":
            return sum(trainer.advance() for _ in range(AT_ONCE)) / AT_ONCE
        with torch.no_grad():
            total = sum(
                nn.functional.cross_entropy(
                    trainer.model(inputs).flatten(0, 1), targets.flatten(), reduction="sum"
                ).item()
                for inputs, targets in zip(*(part.split(64) for part in windows), strict=True)
            )
        return total / windows[0].numel()

    return work


def headway(seed: int) -> Work:
    plan = recipes.plan(recipes.override(recipes.read("char-cpu"), {"seed": seed}))
    tokens = split(plan.tokenizer.encode(plan.source), plan.config.model.context)
    model, training = weights.build(plan.config), plan.config.training
    count = sum(parameter.numel() for parameter in model.parameters())
    total = training.steps * training.batch * plan.config.model.context
    training = devices.suited(count, total, training, torch.device("cpu"))
    training = replace(training, evaluate_every=10**9, evaluation_windows=WINDOWS)
    trainer = Trainer(model, NextToken(model, *tokens, training), training)

    def work(task: str) -> float:
        if task == "train":
            return sum(trainer.advance().loss for _ in range(AT_ONCE)) / AT_ONCE
        return trainer.evaluate()

    return work


def tables(results: report.Report) -> str:
    rows = report.named(results["sides"])
    rows = [{name: row[name] for name in row if name != "curve"} for row in rows]
    ratio = {"what": "plain / headway", "times as fast": results["plain / headway"]}
    ratio["least to most"] = results.get("plain / headway, least to most")
    return report.tables({**results, "rows": [*rows, ratio]})


def main() -> None:
    parser = report.options(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    ratios = []
    for seed in options.seeds:
        slow, fast = race(seed).values()
        rows |= {f"plain, seed {seed}": slow, f"headway, seed {seed}": fast}
        if None not in (slow["good after seconds"], fast["good after seconds"]):
            ratios.append(slow["good after seconds"] / fast["good after seconds"])
    results = {
        "machine": machine(),
        "good": GOOD,
        "plain / headway": report.middle(ratios) if ratios else None,
        "plain / headway, least to most": [report.digits(f(ratios)) for f in (min, max) if ratios],
        "sides": rows,
    }
    report.save(results, options.output)


def race(seed: int) -> dict[str, dict[str, Any]]:
    """Train both sides; while one trains, the other waits, so each has the machine for itself."""
    most = {"plain": STEPS, "headway": recipes.read("char-cpu")["training"]["steps"]}
    sides = {name: Side(make, seed) for name, make in (("plain", plain), ("headway", headway))}
    rows: dict[str, dict[str, Any]] = {
        name: {"steps": 0, "seconds": 0.0, "curve": [], "good after seconds": None}
        for name in sides
    }
    training = set(sides)
    while training:
        for name in sorted(training):
            side, row = sides[name], rows[name]
            row["seconds"] += side.seconds("train")
            row["steps"] += AT_ONCE
            loss = side.run("evaluate")[1]
            row["curve"].append([row["steps"], round(row["seconds"], 2), round(loss, 4)])
            if loss <= GOOD and row["good after seconds"] is None:
                row["good after seconds"] = round(row["seconds"], 1)
                row["good after steps"] = row["steps"]
            if row["steps"] >= most[name] or (name == "plain" and loss <= GOOD):
                training.remove(name)
            print(f"{name:8} step {row['steps']:5} {row['seconds']:6.1f} s  {loss:.4f}", flush=True)
    for side in sides.values():
        side.close()
    return rows


if __name__ == "__main__":
    main()
