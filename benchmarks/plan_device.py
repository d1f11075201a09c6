"""The plan against real training on one GPU: time of a step, peak memory, and kept activations.

    python -m benchmarks.plan_device --output docs/bench/plan_device.json

It trains GPT-2 124M and modern models of about 350M and 1.5B parameters for ten steps each, in
bfloat16, and calibrates the plan for each model as `headway plan --measure` does. No new row starts
after `--seconds`; the file is written after each row. `--small` runs tiny models, on a CPU too, to
test this script. `tables` compares the file with the plan, without a GPU.
"""

from __future__ import annotations

import gc
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from benchmarks import report
from torch import nn
from torch.func import functional_call

from headway.bench.machine import machine
from headway.models.gpt import GPTConfig, preset
from headway.plan.cards import CARDS, Card, Cluster, Efficiency, efficiency_of
from headway.plan.counts import Work, saved
from headway.plan.measure import measure
from headway.plan.memory import moments
from headway.plan.seconds import seconds
from headway.torch import GPT
from headway.torch.engine import recompute_blocks
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training.settings import TrainingConfig

GIB = 2**30
STEPS = 10

# Preset, layers, width, heads.
MODELS = {
    "gpt2 124M": ("gpt2", 12, 768, 12),
    "modern 350M": ("modern", 24, 1024, 16),
    "modern 1.5B": ("modern", 28, 2048, 16),
}
# Model, windows in a batch, windows at a time, optimizer, compiled, checkpointing.
ROWS = [
    ("gpt2 124M", 16, 16, "adamw", False, False),
    ("gpt2 124M", 16, 8, "adamw", False, False),
    ("gpt2 124M", 16, 16, "adamw", False, True),
    ("modern 350M", 16, 16, "adamw", False, False),
    ("modern 350M", 16, 16, "muon", False, False),
    ("modern 350M", 16, 4, "adamw", False, False),
    ("modern 350M", 16, 16, "adamw", False, True),
    ("modern 1.5B", 8, 8, "adamw", False, False),
    ("modern 1.5B", 16, 16, "adamw", False, True),
    ("modern 1.5B", 16, 8, "adamw", False, False),
    ("gpt2 124M", 16, 16, "adamw", True, False),
    ("modern 1.5B", 8, 8, "adamw", True, False),
]


def config_of(name: str, small: bool) -> GPTConfig:
    kind, layers, width, heads = MODELS[name]
    if small:
        layers, width, heads = 2, width // 16, heads // 4
    sizes = {"vocabulary": 307 if small else 50304, "context": 64 if small else 1024}
    return preset(kind, {**sizes, "width": width, "layers": layers}, attention={"heads": heads})


class Saved(nn.Module):
    """The loss of a task, whose tensors that are kept for the backward pass are counted."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.model, self.task = trainer.model, trainer.task

    def forward(self, *batch: Any) -> Any:
        return self.task.loss(self.model, *batch)


def saved_bytes(trainer: Trainer) -> int:
    """The bytes that the first micro-batch of a step keeps, without the parameters."""
    weights = {
        f"model.{name}": p.detach().bfloat16().requires_grad_()
        for name, p in trainer.model.named_parameters()
    }
    parameters = {p.untyped_storage().data_ptr() for p in weights.values()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch, _ = next(iter(trainer.task.batches(0)))
    trainer.model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = functional_call(Saved(trainer), weights, batch)
    del loss
    return sum(storages.values())


def trained(row: tuple[Any, ...], small: bool, device: torch.device) -> dict[str, Any]:
    """Train for some steps."""
    name, batch, at_once, optimizer, compiled, checkpointing = row
    config, is_cuda = config_of(name, small), device.type == "cuda"
    training = TrainingConfig(
        **{"steps": 1000, "batch": batch, "micro_batch": at_once, "optimizer": optimizer},
        **{"evaluate_every": 10**6, "evaluation_windows": 1, "precision": "bfloat16"},
        **{"compile": compiled, "activation_checkpointing": checkpointing},
    )
    with device:
        model = GPT(config, seed=None)
    if checkpointing:
        recompute_blocks(model)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.02)
    allocated = torch.cuda.memory_allocated if is_cuda else lambda: 0
    before = allocated()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, 200_000)
    trainer = Trainer(model, NextToken(model, tokens[:-5000], tokens[-5000:], training), training)
    optimizer_bytes = allocated() - before
    kept = None if compiled or checkpointing else saved_bytes(trainer)
    times = []
    for step in range(STEPS + 2):
        if step == 2 and is_cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        trainer.start()
        if is_cuda:
            torch.cuda.synchronize()
        if step >= 2:
            times.append(1000 * (time.perf_counter() - began))
    return {
        "ms": report.middle(times),
        "peak": torch.cuda.max_memory_allocated() if is_cuda else None,
        "weights bytes": weights,
        "optimizer bytes": optimizer_bytes if is_cuda else None,
        "saved": kept,
    }


def work_of(row: dict[str, Any], small: bool) -> Work:
    config = config_of(row["model"], small)
    return Work(
        config,
        config.context,
        row["windows at a time"],
        row["batch"] // row["windows at a time"],
        muon=row["optimizer"] == "muon",
        recomputed=float(row["checkpointing"]),
        compiled=row["compiled"],
    )


def main() -> None:
    parser = report.options(__doc__)
    parser.add_argument("--small", action="store_true", help="tiny models, to test this script")
    parser.add_argument("--seconds", type=float, default=200, help="after which no row starts")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began, rows, calibrated = time.perf_counter(), [], {}
    for row in ROWS:
        names = ("model", "batch", "windows at a time", "optimizer", "compiled", "checkpointing")
        described = dict(zip(names, row, strict=True))
        is_late = time.perf_counter() - began > options.seconds
        if is_late:
            continue
        try:
            if row[0] not in calibrated:
                work = work_of({**described, "compiled": False}, options.small)
                calibrated[row[0]] = asdict(measure(work, device))
            rows.append({**described, **trained(row, options.small, device)})
        except Exception as error:  # such as a lack of memory: the other rows are measured
            rows.append({**described, "error": str(error).splitlines()[0][:200]})
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        results = {"machine": machine(), "small": options.small, "rows": rows}
        report.save({**results, "calibrated": calibrated}, options.output)


def tables(results: report.Report) -> str:
    """The rows with what the plan says, by default and calibrated."""
    small, shown = results["small"], []
    for row in results["rows"]:
        about = {name: row[name] for name in ("model", "windows at a time", "optimizer")}
        about["batch"] = row["batch"]
        marks = [name for name in ("compiled", "checkpointing") if row[name]]
        about["settings"] = ", ".join(marks)
        if "error" in row:
            shown.append({**about, "error": row["error"]})
            continue
        work, measured = work_of(row, small), results["calibrated"][row["model"]]
        default, card = CARDS["h200"], Card(**measured["card"])
        plans = {"plan": _ms(work, default, efficiency_of(default, work.compiled))}
        if not work.compiled:  # the calibration is without torch.compile
            plans["calibrated"] = _ms(work, card, Efficiency(**measured["efficiency"]))
        shown.append(about | {"ms": row["ms"]})
        for name, plan in plans.items():
            shown[-1] |= {f"{name}, ms": plan, f"{name}, error": _error(plan, row["ms"])}
        most = max(moments(work), key=lambda moment: moment.total)
        if row["peak"]:
            shown[-1] |= {
                "GiB": row["peak"] / GIB,
                "plan, GiB": most.total / GIB,
                "error": _error(most.total, row["peak"]),
            }
        if row["saved"]:
            shown[-1] |= {"kept, GiB": row["saved"] / GIB, "plan, kept, GiB": kept(work) / GIB}
    return report.tables({**results, "rows": shown})


def kept(work: Work) -> int:
    """What `saved_bytes` counts: blocks, the last norm, the loss and the tokens."""
    config, item = work.model, work.itemsize
    blocks = config.layers * sum(saved(config, work.tokens, item).values()) * work.rows
    stream = work.tokens_at_once * config.width * item
    statistics = (2 if config.norm.kind == "layer" else 1) * 4 * work.tokens_at_once
    loss = stream + config.vocabulary * config.width * item
    return blocks + stream + statistics + loss + 8 * work.tokens_at_once


def _ms(work: Work, card: Card, efficiency: Efficiency) -> float:
    return 1000 * seconds(work, Cluster(card), efficiency).total


def _error(plan: float, measured: float) -> str:
    return f"{plan / measured - 1:+.1%}"


if __name__ == "__main__":
    main()
