"""Settings, the schedule, and run directories."""

import json

import pytest

from gpts import gpt_config
from headway.data.tokenizers import Tokenizer
from headway.training.runs import Run, RunConfig, run_path
from headway.training.settings import TrainingConfig, learning_rate

CONFIG = RunConfig(
    *("next-token", "text", "12ab", "char", "34cd", "causal"),
    gpt_config(3, 4, 8, 1, 2),
    TrainingConfig(steps=7),
)


def test_the_learning_rate_rises_and_falls_to_a_tenth():
    config = TrainingConfig(steps=200, learning_rate=0.5, warmup=0.1)
    rates = [learning_rate(step, config) for step in range(201)]
    assert rates[0] == pytest.approx(0.5 / 20)
    assert max(rates) == rates[20] == 0.5
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[200] == pytest.approx(0.05)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"clip": -1},
        {"seed": -1},
        {"evaluate_every": 0},
        {"save_every": 0},
        {"micro_batch": 0},
        {"warmup": 1.5},
        {"weight_decay": -0.1},
        {"optimizer": "sgd"},
        {"precision": "float16"},
    ],
)
def test_settings_that_make_no_sense_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)


def test_a_config_comes_back_and_unknown_keys_are_named():
    assert RunConfig.from_json(CONFIG.to_json()) == CONFIG
    for place, key in (("", "rungs"), ("model", "with"), ("training", "stepz")):
        result = json.loads(CONFIG.to_json())
        (result[place] if place else result)[key] = 1
        near = {"rungs": "rung", "with": "width", "stepz": "steps"}[key]
        with pytest.raises(ValueError, match=f"no '{key}'; did you mean '{near}'"):
            RunConfig.from_json(json.dumps(result))


def test_a_run_of_another_version_names_it(tmp_path):
    """Headway 0.1 wrote no format, flat tables and other names of parameters."""
    run = Run.create(tmp_path / "one", CONFIG, Tokenizer.characters("abc"))
    file, now = run.path / "config.json", json.loads(CONFIG.to_json())
    old = {**now, "model": {"vocabulary": 3, "context": 4, "width": 8, "layers": 1, "heads": 2}}
    del old["format"]
    for written, writer in ((old, "Headway 0.1"), ({**now, "format": 99}, "a later version")):
        file.write_text(json.dumps(written))
        with pytest.raises(ValueError, match=rf"config\.json was written by {writer}") as error:
            run.config  # noqa: B018 - it is read
        assert "damaged" not in str(error.value)
        assert "\n" not in str(error.value)


def test_an_existing_run_is_refused_and_left_alone(tmp_path):
    run = Run.create(tmp_path / "one", CONFIG, Tokenizer.characters("abc"))
    before = {f.name: f.read_bytes() for f in run.path.iterdir()}
    with pytest.raises(ValueError, match="already exists; choose another"):
        Run.create(tmp_path / "one", CONFIG, Tokenizer.characters("xyz"))
    assert {f.name: f.read_bytes() for f in run.path.iterdir()} == before
    assert Run.open(run.path).config == CONFIG
    assert Tokenizer.load(run.path / "tokenizer.json").decode([0, 1, 2]) == "abc"
    with pytest.raises(ValueError, match="available runs: one"):
        Run.open(tmp_path / "two")
    (run.path / "config.json").write_text('{"mod')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        _ = run.config


@pytest.mark.parametrize("name", ["..", "a..b", "../x", "a/b", "", ".hidden", "-x", "a\n", "a b"])
def test_names_that_are_no_plain_names_are_refused(name):
    with pytest.raises(ValueError, match="invalid run name"):
        run_path(name, "runs")


def test_plain_names(tmp_path):
    assert run_path("run-1.5_b", str(tmp_path)) == tmp_path / "run-1.5_b"
