"""One training step: Headway against the same model in the plainest PyTorch.

    python -m benchmarks.train_step --output docs/bench/train_step.json

The GPT-2-like model, batch 12, 64 tokens, 4 layers, 4 heads, width 128, float32, two threads.
Both sides begin with the same weights, which is checked; they run in turns, five steps at a time.
Ratios are of medians. Operations: 6 a parameter and token, and the attention's 12 * context *
width a layer and token (Kaplan et al. 2020; the causal half is not subtracted).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.plain import BATCH, CONTEXT, HEADS, LAYERS, WIDTH, PlainTrainer
from benchmarks.sides import Side, machine

from headway.models.gpt import preset
from headway.torch import GPT
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training.settings import TrainingConfig

VOCABULARY, AT_ONCE = 65, 5
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 100_000)


def plain() -> Callable[[int], list[float]]:
    trainer = PlainTrainer(torch.from_numpy(TOKENS[:-1000]), VOCABULARY)
    ours = _model().named_parameters()  # the same layers in the same order
    with torch.no_grad():
        for plain, (name, own) in zip(trainer.model.parameters(), ours, strict=True):
            turned = own.ndim == 2 and ".c_" in name  # (d_in, d_out), as in GPT-2's files
            plain.copy_(own.mT if turned else own)
    return lambda count: [trainer.advance() for _ in range(count)]


def headway(**settings: Any) -> Callable[[int], list[float]]:
    config = TrainingConfig(
        steps=2000,
        batch=BATCH,
        learning_rate=1e-3,
        evaluate_every=10**6,
        evaluation_windows=1,
        precision="float32",
        **{"compile": False, **settings},
    )
    model = _model()
    task = NextToken(model, TOKENS[:-1000], TOKENS[-1000:], config)
    trainer = Trainer(model, task, config)
    return lambda count: [trainer.advance().loss for _ in range(count)]


def compiled() -> Callable[[int], list[float]]:
    return headway(compile=True)


def multiplication() -> Callable[[int], None]:
    """The machine's peak: matrices of 1,024 squared, multiplied."""
    one, other = torch.randn(2, 1024, 1024).unbind()
    return lambda count: [torch.mm(one, other) for _ in range(count)] and None


def _model() -> GPT:
    sizes = {"vocabulary": VOCABULARY, "context": CONTEXT, "width": WIDTH, "layers": LAYERS}
    return GPT(preset("gpt2", sizes, attention={"heads": HEADS}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", help="also write JSON to this file")
    options = parser.parse_args()
    makers = {"plain": plain, "headway": headway, "headway, compiled": compiled}
    sides = {name: Side(make) for name, make in makers.items()}
    peak = Side(multiplication)
    first = {name: side.run(1) for name, side in sides.items()}
    losses = [round(loss, 2) for _, (loss,) in first.values()]
    assert len(set(losses)) == 1, f"these are not the same model: {losses}"
    for side in (*sides.values(), peak):
        side.run(10)
    spent: dict[str, list[float]] = {name: [] for name in sides}
    products = []
    for _ in range(options.rounds):
        for name, side in sides.items():
            spent[name].append(side.run(AT_ONCE)[0] / AT_ONCE)
        products.append(peak.run(10)[0] / 10)
    speed = 2 * 1024**3 / statistics.median(products) / 1e9
    tokens, parameters = BATCH * CONTEXT, sum(p.numel() for p in _model().parameters())
    operations = tokens * (6 * parameters + 12 * LAYERS * CONTEXT * WIDTH) / 1e9
    rows = {}
    for name, seconds in spent.items():
        median = statistics.median(seconds)
        ratios = [p / s for p, s in zip(spent["plain"], seconds, strict=True)]
        rows[name] = {
            "milliseconds": round(1000 * median, 2),
            "spread": [round(1000 * q, 2) for q in statistics.quantiles(seconds, n=4)[::2]],
            "speed against plain": round(statistics.median(ratios), 3),
            "GFLOP/s": round(operations / median, 1),
            "share of the peak": round(operations / median / speed, 3),
            "first step, seconds": round(first[name][0], 1),
            "first loss": round(first[name][1][0], 4),
        }
    report = {"machine": machine(), "peak GFLOP/s": round(speed, 1), "sides": rows}
    text = json.dumps(report, indent=2)
    print(text)
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
