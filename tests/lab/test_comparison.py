"""How variants are ranked, on runs made up for it."""

from headway.lab.comparison import Comparison, TrainedRun, answers
from headway.lab.experiments import Experiment, Job, Variant

SETTINGS = {"training": {}, "model": {"context": 1}}
RESULT = {"machine": {}, "parameters": 1, "tokens_per_second": 1.0, "memory": 1}


def ended(variant, seed, loss):
    """A run that ended with this loss, or failed."""
    job = Job(variant, seed, SETTINGS, f"{variant}-{seed}")
    if loss is None:
        return TrainedRun(job, [], [], {}, failed="it broke")
    return TrainedRun(job, [(1, loss)], [], RESULT)


def test_neither_the_leak_nor_a_survivor_is_ranked_first():
    losses = {"leak": (0.1, 0.1), "broken": (None, 1.0), "worse": (3.0, 3.0), "better": (2.0, 2.0)}
    variants = [Variant(name, SETTINGS, apart="it leaks" * (name == "leak")) for name in losses]
    runs = [
        ended(name, seed, loss) for name, two in losses.items() for seed, loss in enumerate(two)
    ]
    report = Comparison(Experiment("trial", "?", variants, 2), runs, "again")
    assert [item.name for item in report.ranked] == ["better", "worse", "broken", "leak"]
    assert answers(report) == ["leak: it leaks", "broken, seed 0, failed: it broke"]
