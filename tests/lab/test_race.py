"""The race: equal in size and budget; its report says what the runs said."""

import json
from types import MappingProxyType

import pytest

from headway.data import grammar, pairs
from headway.lab import race, race_report, work
from headway.lab import translation as lab
from headway.lab.comparison import TrainedRun, gather
from headway.lab.experiments import Job
from headway.lab.race import KINDS, Race
from headway.models.seq2seq import Seq2SeqConfig
from headway.training import recipes, translation

# On one worker, because the tests share a fixture that takes seconds.
pytestmark = pytest.mark.xdist_group("race")


@pytest.fixture(scope="module")
def pair_file(tmp_path_factory):
    place = tmp_path_factory.mktemp("race") / "pairs.tsv"
    some = [*grammar.examples(300, [0], seed=9)]
    rows = [f"{item.english}\t{item.german}\n" for item in some]
    place.write_text("".join(rows), encoding="utf-8")
    return place


def test_all_have_as_many_parameters_and_steps(pair_file):
    output = Race(str(pair_file)).settings
    model = recipes.plan(translation.recipe_for("transformer", str(pair_file), {})).config.model
    sizes = {}
    for kind, settings in output.items():
        own = {"vocabulary": model.vocabulary, "context": model.context}
        same = {"layers": model.layers, "heads": model.heads} if kind == "transformer" else {}
        config = Seq2SeqConfig(kind, **own, **same, width=settings["width"])
        sizes[kind] = race._parameters(config)
    assert max(sizes.values()) < 1.02 * min(sizes.values())
    assert {settings["steps"] for settings in output.values()} == {race.STEPS["quick"]}


@pytest.fixture(scope="module")
def done(pair_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "STEPS", MappingProxyType({"quick": 4}))
        patch.setattr(race, "SEEDS", MappingProxyType({"quick": 2}))
        some = {**translation.FILE, "width": 8, "batch": 300, "vocabulary": 300}
        patch.setattr(translation, "FILE", MappingProxyType(some))
        small = {"layers": 1, "heads": 2, "warmup": 0.1}
        patch.setattr(translation, "TRANSFORMER", MappingProxyType(small))
        patch.setattr(work, "is_stopped", lambda: False)
        trial = Race(str(pair_file))
        for job in trial.jobs:  # in this process: a worker would not see the patches
            race.compete(job, str(folder / work.RUNS / job.folder))
        yield trial, folder


def test_every_kind_ran_with_every_seed(done):
    trial, folder = done
    assert [(job.variant, job.seed) for job in trial.jobs] == [
        (k, s) for s in (0, 1) for k in KINDS
    ]
    assert len({job.folder for job in trial.jobs}) == 6
    output = gather(trial.jobs, folder / work.RUNS)
    assert all(run.result and not run.failed for run in output)
    tested = len(pairs.split(pairs.read(trial.source)).test)
    assert {len(race_report.answers_of(run)) for run in output} == {tested}
    assert all([step for step, _ in run.curve] == [4] for run in output)


def test_the_report_is_written_whole(done):
    trial, folder = done
    report = race_report.RaceReport(trial, gather(trial.jobs, folder / work.RUNS), "headway x")
    place = race_report.write(report, folder)
    page, text = (place / "index.html").read_text(), (place / "report.md").read_text()
    for kind in KINDS:
        assert kind in page
        assert f"| all | {kind} | 2 |" in text
    assert "headway x" in page
    assert json.loads((place / "report.json").read_text())["command"] == "headway x"
    assert (place / "loss.png").stat().st_size > 5000


def answered(depth, right):
    message = "c d e f" if right else "x"
    return lab.Answer(lab.Question("a b", "c d e f", depth=depth), message, True, 1, 2)


def ended(kind, seed, right):
    """A run that has `right` of ten sentences right, of depth 0 and of depth 1."""
    answers = [lab.as_dict(answered(d, n < right[d])) for d in (0, 1) for n in range(10)]
    matrix = {"source": ["a"], "target": ["b", "c"], "weights": [[1.0], [0.5]]}
    result = {"answers": answers, "sentence": "s", "parameters": 7, "machine": {}, "longer": 0}
    result |= {"left_out": 0, "matrix": matrix, "seconds": 5.0}
    return TrainedRun(Job(kind, seed, {}, ""), [(10, 1.0)], [], result)


def test_claims_are_paired_by_seed_and_careful():
    right = {
        "rnn": [(9, 1), (8, 2), (9, 1)],
        "bahdanau": [(10, 10), (7, 9), (9, 10)],
        "transformer": [(10, 10), (10, 10), (10, 10)],
    }
    runs = [ended(kind, seed, right[kind][seed]) for kind in KINDS for seed in range(3)]
    report = race_report.RaceReport(Race("grammar:0"), runs, "again")
    message = [*race_report.answers(report)]
    assert message[0] == (
        "depth 0: exact rnn 87% (80% to 90%), bahdanau 87% (70% to 100%), "
        "transformer 100% (100% to 100%)"
    )
    assert message[1].startswith("bahdanau compared with rnn: undecided")
    assert message[3].startswith("depth 1, deeper than the training data:")
    assert message[4].startswith(
        "bahdanau compared with rnn: tendency: lower by 0.833 of the sentences in all 3 seeds ("
    )
    header, *rows = race_report.rows(report)
    assert ["depth 1", "rnn", "3", "13% (10% to 20%)"] in [row[:4] for row in rows]
    assert all(len(row) == len(header) for row in rows)
    names = [item.name for item in race_report.pictures(report)]
    assert names[:5] == ["depth-exact", "depth-bleu", "length-exact", "length-bleu", "loss"]
    assert names[5:] == [f"alignment-{kind}" for kind in KINDS]


def test_what_failed_is_shown():
    runs = [ended("rnn", 0, (1, 1)), TrainedRun(Job("bahdanau", 0, {}, ""), [], [], {}, "no space")]
    report = race_report.RaceReport(Race("grammar:0"), runs, "again")
    assert "bahdanau, seed 0, failed: no space" in race_report.answers(report)
    assert "no conclusion" in " ".join(race_report.answers(report))
