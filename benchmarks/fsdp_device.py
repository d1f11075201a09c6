"""Sharded training on one GPU against training as a whole: losses, time of a step, peak memory.

    torchrun --nproc-per-node 1 -m benchmarks.fsdp_device --output docs/bench/fsdp_device.json

One process with NCCL runs all of FSDP2's code: gathering, mixed precision, compiled blocks, Muon's
exchange, checkpoints. What several GPUs add, the time of communication, it cannot show. GPT-2's
size, 16 windows of 1,024 tokens, bfloat16. `--small` runs tiny models, on a CPU too.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import torch
from benchmarks import report

from headway.bench.machine import machine
from headway.models.gpt import preset
from headway.torch import GPT
from headway.torch.processes import Joined
from headway.torch.sharding import Sharded
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training.settings import TrainingConfig

STEPS = 20
# Preset, optimizer, windows at a time, compiled.
ROWS = [
    ("gpt2", "adamw", 16, False),
    ("gpt2", "adamw", 16, True),
    ("gpt2", "adamw", 4, True),
    ("modern", "muon", 16, True),
]


def trainer(row: tuple[str, str, int, bool], sharded: bool, small: bool) -> Trainer:
    """A trainer of GPT-2's size, as a whole or sharded by FSDP2."""
    kind, optimizer, micro_batch, is_compiled = row
    sizes: dict[str, Any] = {"vocabulary": 50304, "context": 1024, "width": 768, "layers": 12}
    if small:
        sizes = {"vocabulary": 300, "context": 32, "width": 48, "layers": 2}
    config = preset(kind, sizes, attention={"heads": 4 if small else 12})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = TrainingConfig(
        steps=1000,
        batch=16,
        micro_batch=micro_batch,
        optimizer=optimizer,  # type: ignore[arg-type]
        learning_rate=6e-4,
        evaluate_every=1000,
        precision="bfloat16",
        compile=is_compiled,
    )
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, 1_000_000)
    data = tokens[:900_000], tokens[900_000:]
    if not sharded:
        model = GPT(config).to(device)
        return Trainer(model, NextToken(model, *data, training), training)
    with torch.device("meta"):
        model = GPT(config, seed=None)
    processes = Joined()
    computation = Sharded(model, training, processes, device)
    task = NextToken(model, *data, training, device=device, processes=processes)
    return Trainer(model, task, training, processes, computation)


def measured(made: Trainer) -> dict[str, Any]:
    """The losses of all steps, the median time of a step and the peak memory."""
    is_cuda = made.device == "cuda"
    losses, ends = [], []
    for step in range(STEPS):
        if step == STEPS // 2 and is_cuda:
            torch.cuda.reset_peak_memory_stats()
        losses.append(made.advance().loss)
        ends.append(time.perf_counter())
    seconds = np.median(np.diff(ends[STEPS // 2 :]))
    memory = torch.cuda.max_memory_allocated() / 2**30 if is_cuda else 0.0
    return {"losses": losses, "milliseconds": 1000 * float(seconds), "GiB": memory}


def main() -> None:
    """Measure every row, as a whole and sharded, and write the file after each."""
    parser = report.options(__doc__)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    cuda = torch.cuda.is_available()
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    rows = []
    for row in ROWS:
        result: dict[str, Any] = dict(
            zip(("preset", "optimizer", "micro_batch", "compiled"), row, strict=True)
        )
        for name, sharded in (("whole", False), ("sharded", True)):
            try:
                made = trainer(row, sharded, given.small)
                result[name] = measured(made)
                del made
            except Exception as error:
                result[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            gc.collect()
            if cuda:
                torch.cuda.empty_cache()
        rows.append(result)
        report.save({"machine": machine("cuda" if cuda else "cpu"), "rows": rows}, given.output)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
