"""Llama 3.1 8B on up to 4,096 H100: what `headway plan` says, for docs/scale.md.

    python -m benchmarks.plan_cluster --output docs/bench/plan_cluster.json

Nothing is measured. Each row has the micro-batch and checkpointing that the plan suggests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks import report

from headway.plan.cards import Card, Cluster, card_named, efficiency_of
from headway.plan.counts import Work
from headway.plan.estimate import fastest
from headway.plan.published import llama
from headway.plan.seconds import seconds
from headway.training.speed import operations

NAME, PARAMETERS = "Llama 3.1 8B", 8_030_261_248
# GPUs, windows in a batch, tokens in a window.
SWEEPS = {
    "more GPUs, the same batch": [(n, 1024, 8192) for n in (8, 64, 256, 512, 1024)],
    "1,024 GPUs, larger batches": [(1024, n, 8192) for n in (1024, 2048, 4096)],
    "1,024 GPUs, one window each, shorter": [(1024, 1024, n) for n in (4096, 2048, 1024)],
    "one window of 2,048 tokens each": [(n, n, 2048) for n in (8, 64, 256, 1024, 4096)],
}


def row(card: Card, gpus: int, batch: int, tokens: int) -> dict[str, Any]:
    model, cluster, efficiency = llama(NAME, tokens), Cluster(card, gpus), efficiency_of(card, True)
    work = fastest(Work(model, tokens, batch // gpus), cluster, efficiency)
    assert work is not None
    times = seconds(work, cluster, efficiency)
    speed = batch * tokens / times.total
    work_done = speed * operations(model, PARAMETERS, tokens)
    return {
        "GPUs": gpus,
        "batch": f"{batch:,} x {tokens:,}",
        "at a time": work.rows,
        "checkpointing": "yes" if work.recomputed else "no",
        "s a step": report.digits(times.total),
        "tokens/s/GPU": round(speed / gpus),
        "MFU": f"{work_done / gpus / card.peak:.1%}",
        "exposed": f"{times.exposed / times.total:.1%}",
        "days for 1T tokens": report.digits(1e12 / speed / 24 / 3600),
    }


def results() -> dict[str, Any]:
    card = card_named("h100")
    sweeps = {name: [row(card, *one) for one in sweep] for name, sweep in SWEEPS.items()}
    slow = replace(card, network=card.network / 4)
    sweeps["the last, with a quarter of the network"] = [
        row(slow, *one) for one in SWEEPS["one window of 2,048 tokens each"][1:]
    ]
    return {"sweeps": sweeps}


def tables(report_: report.Report) -> str:
    parts = [f"**{name}**\n\n{report.table(rows)}" for name, rows in report_["sweeps"].items()]
    return "\n\n".join(parts)


def main() -> None:
    options = report.options(__doc__).parse_args()
    report.save(results(), options.output)


if __name__ == "__main__":
    main()
