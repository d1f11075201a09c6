"""Recipes: all that come with Headway make sense, flags win, and mistakes are named."""

import pytest

from headway.data import corpora
from headway.training import recipes

TEXT = "It was the best of times, it was the worst of times.\n" * 60


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def of(tmp_path, content):
    (tmp_path / "own.toml").write_text(content)
    return str(tmp_path / "own.toml")


def test_finetune_has_no_model_of_its_own():
    with pytest.raises(ValueError, match=r"have no \[model\]; add one, or start from .* --from"):
        recipes.plan(recipes.read("finetune"))


@pytest.mark.parametrize("name", sorted({*recipes.names()} - {"finetune"}))
def test_every_recipe_is_a_plan(name, text):
    settings = recipes.read(name)
    assert settings["text"] in ("manual", *corpora.PUBLIC)
    plan = recipes.plan(recipes.override(settings, {"text": text}))
    assert plan.source.text == TEXT
    assert plan.config.model.width == settings["model"]["width"]
    assert plan.config.training.steps == settings["training"]["steps"]
    assert plan.config.model.vocabulary == plan.tokenizer.vocabulary


def test_these_recipes_are_there():
    assert {"small", "char-cpu", "shakespeare-char", "gpt2-small"} <= set(recipes.names())


def test_flags_win_over_the_recipe_and_leave_it_alone(text):
    settings = recipes.read("char-cpu")
    flags = {"text": text, "width": 48, "steps": 7, "preset": "gpt2", "tokenizer": "byte"}
    config = recipes.plan(recipes.override(settings, flags)).config
    assert (config.model.width, config.training.steps, config.tokenizer) == (48, 7, "byte")
    assert config.model.norm.kind == "layer"
    assert config.training.batch == settings["training"]["batch"]
    assert settings == recipes.read("char-cpu")


def test_a_rung_takes_gpt2_around_it(text):
    settings = recipes.override(recipes.read("small"), {"rung": "simplified", "text": text})
    assert recipes.plan(settings).config.model.positions.kind == "learned"


def test_the_fields_of_a_preset_can_be_changed_one_by_one(tmp_path, text):
    own = of(
        tmp_path,
        f'text = "{text}"\ntokenizer = "char"\n'
        '[model]\npreset = "modern"\nmlp.kind = "swiglu"\nattention.kv_heads = 2\n'
        "context = 8\nwidth = 16\nlayers = 1\nattention.heads = 4\n",
    )
    model = recipes.plan(recipes.read(own)).config.model
    assert (model.mlp.kind, model.norm.kind) == ("swiglu", "rms")
    assert (model.attention.kv_heads, model.attention.qk_norm) == (2, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("txt = 'a'", "has no 'txt'; did you mean 'text'"),
        ("[model]\nwidht = 3", "has no 'widht'; did you mean 'width'"),
        ("[training]\nstpes = 3", "has no 'stpes'; did you mean 'steps'"),
        ("[model]\nheads = 3", "has no 'heads'; did you mean 'attention.heads'"),
        ("[model]\nnorm = 'rms'", r"\[model\] .*norm must be a table \(got 'rms'\)"),
        ("model = 3", r"\[model\] .* must be a table \(got 3\)"),
        ("[model", "is not valid TOML"),
        ("[model]\nwidth = 8", "model must have 'context', 'layers', and 'attention'"),
        ("[model]\npreset = 'modrn'", r"preset must be one of gpt2, modern \(got \'modrn\'\)"),
        ("rung = 'casual'", "did you mean 'causal'"),
        ("[training]\nsteps = 0", r"steps must be at least 1 \(got 0\)"),
        ("tokenizer = 'words'", "unknown tokenizer 'words'; it must be bpe"),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    sizes = "[model]\ncontext = 8\nwidth = 16\nlayers = 1\nattention.heads = 4\n"
    path = of(tmp_path, content if "model" in content else f"{content}\n{sizes}")
    with pytest.raises(ValueError, match=message):
        recipes.plan(recipes.read(path))


def test_an_unknown_recipe_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'char-cpu'"):
        recipes.read("char-cup")
