"""How variants are ranked and claims confirmed, on runs made up for it."""

import json

import pytest

from headway.cli import lab
from headway.lab import comparison, work
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


def replicated(first, others):
    """A report of differences between two variants, with as many seeds for the replication."""
    variants = [Variant("old", SETTINGS), Variant("new", SETTINGS, "old")]
    runs = []
    for seed, difference in enumerate((*first, *others)):
        runs += [ended("old", seed, 2.0), ended("new", seed, 2.0 + difference)]
    trial = Experiment("trial", "?", variants, len(first))
    return comparison.of(trial, runs, "again")


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        (
            (-0.2, -0.3, -0.2, -0.3, -0.2),
            "confirmed by other seeds: better by 0.240 nats per token "
            "(95% interval -0.308 to -0.172, 5 seeds)",
        ),
        (
            (-0.2, 0.3, -0.2, 0.3, -0.2),
            "not confirmed by other seeds: undecided (95% interval -0.340 to +0.340, 5 seeds)",
        ),
        (
            (-0.2, -0.3),
            "not confirmed by other seeds: no conclusion, because only 2 of 5 seeds have ended "
            "in both",
        ),
    ],
)
def test_a_claim_is_checked_with_other_seeds_alone(others, sentence):
    (output,) = answers(replicated((-0.1, -0.2, -0.1, -0.2, -0.1), others))
    assert output == (
        "new compared with old: better by 0.140 nats per token "
        f"(95% interval -0.208 to -0.072, 5 seeds); {sentence}"
    )


def test_without_a_claim_the_other_seeds_are_shown_only():
    (output,) = answers(replicated((-0.1, 0.2, -0.1, 0.2, 0.0), (-0.2, -0.3, -0.2, -0.3, -0.2)))
    assert "undecided (95% interval -0.148 to +0.228, 5 seeds); other seeds: better by" in output


def test_both_groups_are_in_the_json():
    report = replicated((-0.1, -0.2, -0.1, -0.2, -0.1), (-0.2, -0.3, -0.2, -0.3, -0.2))
    output = json.loads(json.dumps(comparison.as_dict(report)))
    for part, seeds, mean in (
        (output, range(5), -0.14),
        (output["replication"], range(5, 10), -0.24),
    ):
        (effect,) = part["effects"]
        assert effect["claim"] == "better"
        assert effect["mean"] == pytest.approx(mean)
        assert [*map(int, effect["differences"])] == [*seeds]
        for variant in part["variants"]:
            assert [run["seed"] for run in variant["runs"]] == [*seeds]
    assert comparison.as_dict(replicated((1.0,) * 3, ()))["replication"] is None


def test_if_losses_rise_their_lowest_are_compared_too():
    report = replicated((-0.1,) * 5, (-0.1,) * 5)
    assert len(answers(report)) == 1
    for run in (*report.runs, *report.replication.runs):
        lowest = {"old": 1.5, "new": 1.7}[run.job.variant]
        run.curve.insert(0, (0, 1.0 if run.job.seed == 9 else lowest))
    assert answers(report)[1:] == [
        "at the lowest loss of each run, new compared with old: worse by 0.200 nats per token (95% "
        "interval +0.200 to +0.200, 5 seeds); confirmed by other seeds: worse by 0.160 nats per "
        "token (95% interval +0.049 to +0.271, 5 seeds)"
    ]


OWN = """question = "?"
text = "text.txt"
model = { width = 8, layers = 1, context = 16 }
[[variants]]
name = "a"
[[variants]]
name = "b"
model.attention.heads = 2
"""


def test_the_command_trains_as_many_other_seeds(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("It was the best of times.\n" * 60)
    (tmp_path / "own.toml").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    trained = []
    monkeypatch.setattr(work, "run", lambda jobs, *_, **__: trained.extend(jobs) or {})
    lab.compare("own.toml", full=True, replicate=True)
    assert [(job.variant, job.seed) for job in trained] == [(v, s) for s in range(10) for v in "ab"]
    output = json.loads((tmp_path / "lab" / "own-text-full" / "report.json").read_text())
    assert output["command"] == "headway compare own.toml --full --replicate"
    assert "20 of 20 runs have not ended" in output["answers"]
    with pytest.raises(ValueError, match=r"at least 5 seeds, as with --full \(got 3\)"):
        lab.compare("own.toml", replicate=True)
