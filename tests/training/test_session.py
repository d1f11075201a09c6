"""A run from Python: begun, resumed, extended; for every task the same."""

import json

import pytest

import headway
from headway.data.sources import Text
from headway.data.tokenizers import digest
from headway.engines import engine_named
from headway.training import recipes, session, translation
from headway.training.runs import Run
from headway.training.task import TASKS, task_named

TEXT = "It was the best of times, it was the worst of times.\n" * 40
TINY = {"context": 8, "width": 16, "layers": 1, "heads": 2, "tokenizer": "char"}
TINY |= {"steps": 4, "batch": 3, "evaluate_every": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(TEXT)
    return str(file)


@pytest.fixture(scope="module")
def pair_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    names = ("dog", "cat", "bird", "fox")
    lines = [
        f"the {a} sees {b} {n}.\tder {a} sieht {b} {n}."
        for n in range(8)
        for a in names
        for b in names
    ]
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def losses(run):
    return [line["loss"] for line in run.logged()]


def test_train_from_python_is_a_run_and_settings_win_over_the_recipe(text, tmp_path):
    run = headway.train(text, name="a", runs=str(tmp_path), **TINY)
    assert isinstance(run, Run)
    assert (run.config.task, run.config.model.width, run.config.training.steps) == (
        "next-token",
        16,
        4,
    )
    assert run.logged()[-1]["validation"] is not None
    again = headway.train(text, name="b", runs=str(tmp_path), **TINY)
    assert losses(again) == losses(run)
    with pytest.raises(ValueError, match="has no 'stpes'; did you mean 'steps'"):
        headway.train(text, runs=str(tmp_path), stpes=3)
    with pytest.raises(ValueError, match="unknown task 'nothing'"):
        headway.train(text, runs=str(tmp_path), task="nothing")


def plan(task, text, pair_file):
    if task == "next-token":
        return recipes.plan(recipes.override(recipes.read("small"), {"text": text, **TINY}))
    kind = {"translation": "transformer", "masked-words": "encoder"}[task]
    given = {"width": 16, "layers": 1, "heads": 2, "vocabulary": 300, "steps": 4, "batch": 90}
    return recipes.plan(translation.recipe_for(kind, pair_file, {**given, "evaluate_every": 2}))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_begins_samples_stops_and_resumes_to_the_same_end(
    task, text, pair_file, tmp_path
):
    planned, engine = plan(task, text, pair_file), engine_named()
    complete = session.begin(tmp_path / "complete", planned, engine)
    complete.fit()
    cut = session.begin(tmp_path / "cut", planned, engine)
    cut.fit(interrupted=lambda: cut.trainer.step == 2)
    assert cut.sample(brief=True).count("\n") == 0
    resumed = session.resume(Run.open(tmp_path / "cut"), engine)
    assert resumed.config.task == task
    assert (resumed.trainer.step, resumed.differences) == (2, [])
    resumed.fit()
    assert losses(resumed.run) == losses(complete.run)
    assert resumed.sample() == complete.sample()
    assert resumed.examples.summary in (complete.examples.summary,)


def test_a_finished_run_can_be_extended_and_not_shortened(text, tmp_path):
    run = headway.train(text, name="a", runs=str(tmp_path), **TINY)
    with pytest.raises(ValueError, match=r"steps can only grow .* it has 4 \(got 3\)"):
        session.resume(run, engine_named(), steps=3)
    longer = session.resume(run, engine_named(), steps=6)
    longer.fit()
    assert [line["step"] for line in run.logged()] == [1, 2, 3, 4, 5, 6]
    assert json.loads((run.path / "config.json").read_text())["training"]["steps"] == 6
    assert session.resume(Run.open(run.path), engine_named()).trainer.step == 6


def test_changed_data_are_refused(text, tmp_path):
    file = tmp_path / "own.txt"
    file.write_text(TEXT)
    run = headway.train(str(file), name="a", runs=str(tmp_path), **TINY)
    file.write_text(TEXT + "More.\n")
    with pytest.raises(ValueError, match="text_sha256 has changed"):
        session.resume(run, engine_named(), steps=6)


def test_tasks_are_named():
    assert [*TASKS] == ["next-token", "translation", "masked-words"]
    assert task_named("translation").sha256_of((("a", "b"), ("c", "d"))) == digest("a\nb\nc\nd")
    assert task_named("next-token").sha256_of(Text("a\nb")) == digest("a\nb")
