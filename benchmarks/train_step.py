"""One training step: Headway against the same model in the plainest PyTorch.

    python -m benchmarks.train_step --output docs/bench/train_step.json

The GPT-2-like model, batch 12, 64 tokens, 4 layers, 4 heads, width 128, float32, two threads.
Both sides begin with the same weights, which is checked; they run in turns, five steps at a time.
Ratios are medians of the ratios of each round. Operations: as in `headway.training.speed`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmarks import report
from benchmarks.plain import SMALL, PlainGPT, PlainTrainer
from benchmarks.sides import Side, in_turns, machine

from headway.models.gpt import preset
from headway.torch import GPT
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training.settings import TrainingConfig
from headway.training.speed import operations

VOCABULARY, AT_ONCE = 65, 5
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 100_000)


def plain() -> Callable[[int], list[float]]:
    trainer = PlainTrainer(torch.from_numpy(TOKENS[:-1000]), VOCABULARY)
    trainer.model.copy_from(dict(_model().named_parameters()))
    return lambda count: [trainer.advance() for _ in range(count)]


def headway(**settings: Any) -> Callable[[int], list[float]]:
    config = TrainingConfig(
        steps=2000,
        batch=SMALL.batch,
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


def check_same() -> None:
    """Check that both sides compute the same function."""
    model, other = _model(), PlainGPT(VOCABULARY)
    other.copy_from(dict(model.named_parameters()))
    tokens = torch.from_numpy(TOKENS[None, : SMALL.context])
    torch.testing.assert_close(other(tokens), model(tokens), rtol=1e-4, atol=1e-5)


def _model() -> GPT:
    layers, heads, width, context, _ = SMALL
    sizes = {"vocabulary": VOCABULARY, "context": context, "width": width, "layers": layers}
    return GPT(preset("gpt2", sizes, attention={"heads": heads}))


def tables(results: report.Report) -> str:
    return report.tables({**results, "rows": report.named(results["sides"])})


def main() -> None:
    options = report.options(__doc__, rounds=40).parse_args()
    makers = {"plain": plain, "headway": headway, "headway, compiled": compiled}
    check_same()
    sides = {name: Side(make) for name, make in makers.items()}
    first = {name: side.run(1) for name, side in sides.items()}
    sides["peak"] = Side(multiplication)
    for side in sides.values():
        side.run(10)
    spent = in_turns(
        {name: partial(side.seconds, AT_ONCE) for name, side in sides.items()}, options.rounds
    )
    spent = {name: [seconds / AT_ONCE for seconds in times] for name, times in spent.items()}
    speed = 2 * 1024**3 / statistics.median(spent.pop("peak")) / 1e9
    model = _model()
    parameters = sum(p.numel() for p in model.parameters())
    per_token = operations(model.config, parameters, SMALL.context)
    work = SMALL.batch * SMALL.context * per_token / 1e9
    rows = {
        name: {
            "ms": report.middle([1000 * x for x in seconds]),
            "quartiles, ms": report.quartiles([1000 * x for x in seconds]),
            "times as fast as plain": report.ratio(spent["plain"], seconds),
            "GFLOP/s": report.digits(work / statistics.median(seconds)),
            "share of the peak": report.digits(work / statistics.median(seconds) / speed),
            "first step, s": report.digits(first[name][0]),
            "first loss": round(first[name][1][0], 4),
        }
        for name, seconds in spent.items()
    }
    results = {"machine": machine(), "peak GFLOP/s": report.digits(speed), "sides": rows}
    report.save(results, options.output)


if __name__ == "__main__":
    main()
