"""Record the usual losses of a recipe: python -m headway.lab.bands char-cpu

Trains it with five seeds, like `headway compare`, and prints the JSON for training/bands.
"""

import json
import sys
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t

from headway.lab import comparison as comparisons
from headway.lab import work
from headway.lab.comparison import TrainedRun
from headway.lab.experiments import Experiment, Variant
from headway.training import recipes
from headway.training.advice import Bands, comparable
from headway.training.runs import Run

SEEDS = 5
SHARE = 0.99
LEAST = 0.02  # nats on each side, because machines round differently


def record(recipe: str, lab: Path) -> Bands:
    """Train the missing runs and return their bands. Raises ValueError if a run fails."""
    variant = Variant(recipe, recipes.read(recipe))
    experiment = Experiment(f"bands of {recipe}", "What are its usual losses?", [variant], SEEDS)
    errors = work.run(experiment.jobs, lab / work.RUNS)
    runs = comparisons.gather(experiment.jobs, lab / work.RUNS, errors)
    if not all(run.result for run in runs):
        raise ValueError(
            "; ".join(run.failed for run in runs if run.failed) or "not all runs have ended"
        )
    return around(recipe, runs, Run.open(lab / work.RUNS / runs[0].job.folder))


def around(recipe: str, runs: list[TrainedRun], first: Run) -> Bands:
    """Return the bands of these runs. first: one of them."""
    steps = [step for step, _ in runs[0].curve]
    losses = [[dict(run.curve)[step] for run in runs] for step in steps]
    reach = float(t.ppf((1 + SHARE) / 2, len(runs) - 1)) * sqrt(1 + 1 / len(runs))
    widths = [max(LEAST, reach * stdev(values)) for values in losses]
    return Bands(
        recipe=recipe,
        config=comparable(first.config),
        seeds=len(runs),
        steps=steps,
        low=[round(mean(v) - width, 4) for v, width in zip(losses, widths, strict=True)],
        high=[round(mean(v) + width, 4) for v, width in zip(losses, widths, strict=True)],
        machine=runs[0].result["machine"],
    )


if __name__ == "__main__":
    print(json.dumps(asdict(record(sys.argv[1], Path("lab"))), indent=1))
