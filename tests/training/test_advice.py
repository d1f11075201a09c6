"""Is a run normal: mistakes in the settings, and losses outside the recorded bands."""

import json
from dataclasses import asdict, replace

import pytest

from headway.training import advice, recipes
from headway.training.advice import Bands, comparable

TEXT = "It was the best of times, it was the worst of times.\n" * 60


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def message(text, recipe="char-cpu", **flags):
    usual = recipes.read(recipe)
    config = recipes.plan(recipes.override(usual, {**flags, "text": text})).config
    return [*advice.mistakes(config, usual)]


@pytest.mark.parametrize("name", sorted({*recipes.names()} - {"finetune"}))
def test_no_recipe_is_a_mistake(name, text):
    assert message(text, name) == []


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"batch": 1}, "a step has 64 tokens, in the recipe 768"),
        ({"batch": 200}, "a step has 12,800 tokens"),
        ({"learning_rate": 0.1}, "0.1 is far above the recipe's 0.006"),
        ({"heads": 16}, "a head has 8 features, but 16 or more are usual"),
    ],
    ids=str,
)
def test_each_mistake_is_a_sentence(flags, part, text):
    (result,) = message(text, **flags)
    assert part in result


def test_heads_and_layers_exchanged(tmp_path, text):
    own = tmp_path / "own.toml"
    own.write_text("[model]\ncontext = 8\nwidth = 192\nlayers = 6\nattention.heads = 2\n")
    (result,) = message(text, str(own), layers=2, heads=6)
    assert "2 layers of 6 heads; did you exchange heads and layers?" in result
    assert message(text, str(own), layers=2, heads=4) == []


def test_a_recipe_that_says_little_is_measured_by_what_it_says(tmp_path, text):
    own = tmp_path / "own.toml"
    own.write_text("[training]\nbatch = 1\n")
    flags = {"context": 64, "width": 64, "layers": 1, "heads": 2}
    assert message(text, str(own), **flags) == []
    (result,) = message(text, str(own), **flags, batch=100)
    assert "a step has 6,400 tokens, in the recipe 64" in result


def test_one_head_is_as_wide_as_the_model(tmp_path, text):
    assert message(text, "small", rung="causal", heads=16) == []
    assert len(message(text, "small", rung="multihead", heads=16)) == 1


def test_settings_near_the_recipes_are_no_mistake(text):
    assert message(text, batch=40, learning_rate=2e-2, heads=8, width=128) == []


@pytest.fixture
def recorded(tmp_path, text, monkeypatch):
    """Bands of a recipe, as if they came with Headway."""
    config = recipes.plan(recipes.override(recipes.read("char-cpu"), {"text": text})).config
    (tmp_path / "bands").mkdir()
    result = Bands("char-cpu", comparable(config), 5, [100, 200], [2.0, 1.5], [2.2, 1.7], {})
    (tmp_path / "bands" / "char-cpu.json").write_text(json.dumps(asdict(result)))
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    return config


def test_bands_are_those_of_the_same_settings_only(recorded):
    assert advice.bands(recorded).recipe == "char-cpu"
    training = recorded.training
    for same in (replace(training, seed=9), replace(training, precision="float32", save_every=1)):
        assert advice.bands(replace(recorded, training=same)) is not None
    others = [
        replace(recorded, training=replace(training, learning_rate=0.001)),
        replace(recorded, training=replace(training, evaluation_windows=3)),
        replace(recorded, model=replace(recorded.model, width=64)),
        replace(recorded, text_sha256="0"),
        replace(recorded, rung="causal"),
    ]
    assert [advice.bands(item) for item in others] == [None] * 5


def test_a_loss_outside_the_bands_is_said(recorded):
    bands = advice.bands(recorded)
    assert bands.leaves(100, 2.1) == bands.leaves(150, 9.0) == bands.leaves(100, None) == ""
    assert "2.300 after step 100 is above the range 2.000 to 2.200" in bands.leaves(100, 2.3)
    assert "above" in bands.leaves(100, float("nan"))
    assert "1.200 after step 200 is below the range 1.500 to 1.700" in bands.leaves(200, 1.2)


def test_the_bands_that_come_with_headway_are_those_of_the_recipe_today(text):
    from importlib import resources

    result = [*(resources.files("headway.training") / "bands").iterdir()]
    assert result
    for file in result:
        bands = Bands(**json.loads(file.read_text(encoding="utf-8")))
        assert bands.recipe in recipes.names()
        assert bands.seeds >= 5
        assert {"processor", "torch", "headway"} <= set(bands.machine)
        assert all(low < high for low, high in zip(bands.low, bands.high, strict=True))
        assert bands.steps[-1] == recipes.read(bands.recipe)["training"]["steps"]
        config = recipes.plan(recipes.override(recipes.read(bands.recipe), {"text": text})).config
        known = {key: bands.config[key] for key in ("text_sha256", "tokenizer_sha256")}
        model = replace(config.model, vocabulary=bands.config["model"]["vocabulary"])
        assert advice.bands(replace(config, **known, model=model)) == bands
