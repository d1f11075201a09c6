"""What a model that may look ahead attends to, next to one that may not.

`python -m headway.lab.leak > src/headway/learn/recorded/leak.json` trains the two runs of the climb
(`headway climb shakespeare --quick`, seed 0) in about a minute and prints what the guide shows: the
attention weights of the first layer on TEXT, and what the leaking model writes after PROMPTS.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from headway.lab import climb, work

TEXT = "Your journey"
PROMPTS = ("\n", "a", "e")
SEED = 0


def recorded() -> dict[str, Any]:
    """Train both models and return what is printed."""
    import torch

    import headway
    from headway.engines import engine_named
    from headway.torch import weights
    from headway.training.runs import Run

    jobs = {
        job.variant: job
        for job in climb.experiment("shakespeare", "quick").jobs
        if job.seed == SEED and job.variant in (climb.LEAK, "causal")
    }
    result: dict[str, Any] = {"text": TEXT, "seed": SEED}
    with TemporaryDirectory() as folder:
        work.run(list(jobs.values()), Path(folder))
        for variant, job in jobs.items():
            run = Run.open(Path(folder) / job.folder)
            model = weights.load(run).eval()
            tokens = run.tokenizer.encode(TEXT)
            with headway.trace(only="blocks.0.attention.weights") as steps, torch.no_grad():
                model(torch.as_tensor(np.array(tokens))[None])
            rows = np.asarray(steps["blocks.0.attention.weights"]).reshape(len(TEXT), len(TEXT))
            result[variant] = rows.astype(float).round(3).tolist()
            if variant == climb.LEAK:
                engine = engine_named("torch")
                for prompt in PROMPTS:
                    start = np.array(run.tokenizer.encode(prompt))
                    written = engine.generate(
                        model, [start], tokens=40, temperature=0.8, top_p=0.95
                    )
                    text = run.tokenizer.decode([int(token) for (token,) in written])
                    result.setdefault("written", {})[prompt] = text
    return result


if __name__ == "__main__":
    print(json.dumps(recorded()))
