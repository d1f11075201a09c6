"""Train a run with one engine, in this process or in several that meet through `jax.distributed`.

python several.py FOLDER ENGINE STEP SETTINGS: resume the run of a folder, or start it, and stop
after STEP. SETTINGS: those that differ from the usual ones, as JSON.
Prints, as JSON, the differences between the machines.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpts import gpt_config
from headway.data.tokenizers import Tokenizer, digest
from headway.engines import engine_named
from headway.training import loop
from headway.training.processes import on_first
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

CORPUS = "".join(np.random.default_rng(0).choice(list("abcdef \n"), 600))
TOKENIZER = Tokenizer.characters(CORPUS)
TOKENS = TOKENIZER.encode(CORPUS)[:500], TOKENIZER.encode(CORPUS)[500:]
STEPS = 50


def config(**training):
    """A model with dropout; 7 windows in a batch, two at a time, and 10 held-out windows."""
    settings = TrainingConfig(
        *(STEPS, None, 7, 2, "muon"),
        learning_rate=0.01,
        evaluate_every=10,
        save_every=25,
        precision="float32",
        compile=False,
    )
    return RunConfig(
        *("next-token", "text", digest(CORPUS), "char", TOKENIZER.fingerprint, None),
        gpt_config(TOKENIZER.vocabulary, 8, 16, 1, 2, dropout=0.1),
        replace(settings, **training),
    )


def main():
    folder, name, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    engine = engine_named(name)
    processes = engine.join("cpu")
    settings = config(**json.loads(sys.argv[4]))
    on_first(processes, lambda: folder.exists() or Run.create(folder, settings, TOKENIZER))
    run = Run(folder)
    trainer = engine.trainer(run.config, TOKENS, "cpu", processes=processes)
    told = loop.resume(trainer, run, run.config)
    loop.fit(trainer, run, run.config, interrupted=lambda: trainer.step >= step)
    processes.leave()
    if processes.rank == 0:
        print(json.dumps(told))


if __name__ == "__main__":
    main()
