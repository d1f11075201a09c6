"""Training runs in several processes: `torchrun several.py FOLDER CASE ...`, for test_several.py.

Each case trains in FOLDER/CASE. The measurements of process 0 are in FOLDER/CASE.json.
"""

import json
import resource
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

from gpts import MODERN, gpt_config
from headway.data.tokenizers import Tokenizer
from headway.torch import engine
from headway.torch.optimizers import local
from headway.training import loop, muon
from headway.training.processes import ALONE
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

TEXT = "the cat sat on the mat, the dog sat on the log. " * 40
TOKENIZER = Tokenizer.characters(TEXT)
TOKENS = TOKENIZER.encode(TEXT)
DATA = TOKENS[:-200], TOKENS[-200:]


def config(preset=MODERN, dropout=0.2, rung=None, **settings):
    # 13 rows of the MLP and 18 tokens are no multiple of 2, 3 or 4; neither are the 7 windows.
    model = gpt_config(
        TOKENIZER.vocabulary, 8, 12, 2, 2, **{"d_mlp": 13, **preset}, dropout=dropout
    )
    settings = {"optimizer": "muon", "learning_rate": 5e-3, **settings}
    training = TrainingConfig(
        **{"steps": 50, "batch": 7, "save_every": 25, "evaluate_every": 10, **settings}
    )
    return RunConfig("next-token", "text", "12ab", "char", "34cd", rung, model, training)


CASES = {
    "muon": config(MODERN, micro_batch=2),
    "adamw": config({}, optimizer="adamw", learning_rate=1e-3),
    "untied": config({**MODERN, "tied": False}, dropout=0.0, steps=10, batch=8),
    "stacked": config({}, rung="stacked", steps=6),
    "fused": config({}, rung="fused", steps=6),
    "recomputed": config(MODERN, activation_checkpointing=True, steps=6),
    "bfloat16": config(MODERN, precision="bfloat16", steps=6),
}
COMPILED = config(MODERN, compile=True, steps=6, micro_batch=2)


def trainer(of, processes=ALONE):
    return engine.trainer(of, DATA, "cpu", processes=processes)


def trained(folder, of, processes=ALONE, until=None):
    """Train a run, or resume it, until a step; return the measurements."""
    path = Path(folder)
    made = trainer(of, processes)
    if not path.exists() and processes.rank == 0:
        Run.create(path, of, TOKENIZER)
    processes.exchange("")
    run = Run(path)
    told = loop.resume(made, run, of)
    loop.fit(made, run, of, interrupted=lambda: made.step == until)
    steps = [{k: v for k, v in r.items() if k != "seconds"} for r in run.logged()]
    held = sum(local(p).numel() for p in made.model.parameters())
    return {"steps": steps, "differences": told, "held": held, "all": made.parameters}


class Calls(TorchDispatchMode):
    """Counts the calls of operators, by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def communication(processes):
    """How often a step with four micro-batches calls operators of torch.distributed."""
    made = trainer(config(MODERN, batch=4 * processes.count, micro_batch=1), processes)
    with Calls() as calls:
        made.advance()
    return {name: count for name, count in calls.counts.items() if name.startswith("c10d.")}


def muon_error(processes):
    """The largest error of an update, relative to the largest of that parameter."""
    made, worst = trainer(config(MODERN), processes), 0.0
    generator = torch.Generator().manual_seed(0)
    named = {n: p for n, p in made.model.named_parameters() if muon.is_matrix(n, p.ndim)}
    whole = {n: torch.randn(p.shape, generator=generator) for n, p in named.items()}
    mine = {n: torch.empty_like(local(p)) for n, p in named.items()}
    for name, tensor in mine.items():
        made._computation.fill(name, tensor, whole[name].numpy())
    expected = muon.updates(whole)
    owned = []

    def compute(momenta):
        owned.extend(momenta)
        return muon.updates(momenta)

    for name, rows in made._computation.updates(mine, compute).items():
        wanted = torch.empty_like(rows)
        made._computation.fill(name, wanted, expected[name].numpy())
        if rows.numel():
            error = (rows - wanted).abs().max() / expected[name].abs().max()
            worst = max(worst, error.item())
    everywhere = [json.loads(text) for text in processes.exchange(json.dumps([worst, owned]))]
    return {
        "error": max(error for error, _ in everywhere),
        "owned": [names for _, names in everywhere],
        "matrices": [*named],
    }


def full_disk(folder, processes):
    """What every process raises if one of them cannot write, and what is left."""
    of = config(MODERN, steps=4, save_every=2)
    path = Path(folder)
    trained(path, of, processes, until=2)
    if processes.rank == processes.count - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    try:
        trained(path, of, processes)
        error = ""
    except OSError as raised:
        error = str(raised)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    errors = processes.exchange(error)
    return {"errors": errors, "left": sorted(p.name for p in (path / "checkpoints").iterdir())}


def main(folder, names):
    torch.set_num_threads(1)
    processes = engine.join("cpu")
    for name in names:
        if name == "communication":
            result = communication(processes)
        elif name == "muon error":
            result = muon_error(processes)
        elif name == "full disk":
            result = full_disk(folder / name, processes)
        elif name.startswith("stop"):
            result = trained(folder / name, CASES["muon"], processes, until=25)
        elif name.startswith("resume"):
            result = trained(folder / name.replace("resume", "stop"), CASES["muon"], processes)
        else:
            of = COMPILED if name == "compiled" else CASES[name]
            result = trained(folder / name, of, processes)
        if processes.rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(result))
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    assert not distributed.is_initialized()
