"""Experiments: those that come with Headway make sense, and mistakes are named."""

import pytest

from headway.lab import climb, experiments
from headway.lab.experiments import Experiment, Variant
from headway.models.gpt import overlaid, preset
from headway.training import recipes

TEXT = "It was the best of times, it was the worst of times.\n" * 60
WANTED = {"scale", "heads", "width-of-head", "dropout", "normalizer", "position", "context"}
WANTED |= {"kv-heads"}


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def own(tmp_path, content, name="own.toml"):
    (tmp_path / name).write_text(content)
    return str(tmp_path / name)


def parameters(settings):
    """Of a GPT with multi-head attention or a rung."""
    from headway.torch import weights

    model = weights.build(recipes.plan(settings).config)
    return sum(p.numel() for p in model.parameters())


def test_these_are_there():
    assert set(experiments.names()) == WANTED


@pytest.mark.parametrize("name", sorted(WANTED))
def test_every_experiment_can_be_run(name, text):
    long = own_text(text)
    for size, seeds in (("quick", 3), ("full", 5)):
        experiment = experiments.read(name, size).with_text(long)
        jobs = experiment.jobs
        assert len(jobs) == seeds * len(experiment.variants)
        assert len({job.folder for job in jobs}) == len(jobs)
        assert [each.against for each in experiment.variants].count(None) < len(experiment.variants)
        assert all(parameters(each.settings) > 100_000 for each in experiment.variants)
    longer = experiment.variants[0].settings["training"]["steps"]
    assert longer > experiments.read(name, "quick").variants[0].settings["training"]["steps"]


def own_text(text):
    with open(text, "a", encoding="utf-8") as file:
        file.write(TEXT * 4)
    return text


@pytest.mark.parametrize("name", sorted(WANTED - {"position", "context"}))
def test_variants_have_as_many_parameters_as_each_other(name, text):
    result = [
        parameters(v.settings) for v in experiments.read(name, "quick").with_text(text).variants
    ]
    assert max(result) - min(result) <= 0.005 * max(result), result


def test_scale_pairs_each_rate_and_width_with_itself():
    experiment = experiments.read("scale", "quick")
    pairs = [each for each in experiment.variants if each.against]
    assert len(pairs) == 4
    for each in pairs:
        (other,) = (one for one in experiment.variants if one.name == each.against)
        assert each.settings["model"]["attention"].pop("scale") == 1.0
        assert each.settings == other.settings


def test_a_file_of_ones_own(tmp_path, text):
    file = own(
        tmp_path,
        f'question = "Wider?"\ntext = "{text}"\nquick = {{ seeds = 2, steps = 3 }}\n'
        'model.layers = 1\n[[variants]]\nname = "a"\n'
        '[[variants]]\nname = "b"\nmodel.width = 48\n'
        '[[variants]]\nname = "c"\nagainst = "b"\ntraining.batch = 2\n'
        '[[variants]]\nname = "d"\nagainst = ""\n',
    )
    experiment = experiments.read(file, "quick")
    assert (experiment.name, experiment.question, experiment.seeds) == ("own", "Wider?", 2)
    assert [each.against for each in experiment.variants] == [None, "a", "b", None]
    assert [each.settings["model"]["width"] for each in experiment.variants] == [96, 48, 96, 96]
    assert {each.settings["training"]["steps"] for each in experiment.variants} == {3}
    assert experiments.read(file, "full").seeds == 5
    base = recipes.read("lab")
    assert (
        experiment.variants[0].settings["training"]["learning_rate"]
        == (base["training"]["learning_rate"])
    )


def test_the_folder_of_a_run_tells_its_settings_apart(text):
    settings = {**recipes.read("lab"), "text": text}

    def folder(settings, seed):
        return Experiment("x", "?", [Variant("a b!", settings)], 2).jobs[seed].folder

    first = folder(settings, 0)
    assert first.startswith("a-b-0-")
    assert first == folder(settings, 0)
    other = overlaid(settings, {"model": {}, "training": {"batch": 3}})
    assert len({first, folder(settings, 1), folder(other, 0), folder(other, 1)}) == 4
    with open(text, "a", encoding="utf-8") as file:
        file.write("more")
    assert folder(settings, 0) != first, "another text under the same name"


@pytest.mark.parametrize(
    ("content", "printed"),
    [
        ("", "has no 'question'"),
        ('question = "?"', "has no 'variants'"),
        ('question = "?"\nvarients = 1', "did you mean 'variants'"),
        ('question = "?"\nvariants = 1', r"must list its variants as \[\[variants\]\]"),
        ('question = "?"\n[[variants]]\nname = "a"', "at least two variants"),
        (
            'question = "?"\n[[variants]]\nname = "a"\n[[variants]]\nname = "a"',
            "variants with different names",
        ),
        ('question = "?"\n[[variants]]\nname = "a"\n[[variants]]\n', "has no name"),
        (
            'question = "?"\n[[variants]]\nname = "a"\n[[variants]]\nname = "b"\nagainst = "c"',
            "'b' is compared with the unknown variant 'c'",
        ),
        (
            'question = "?"\n[[variants]]\nname = "a"\nmodel.widht = 3\n[[variants]]\nname = "b"',
            "did you mean 'width'",
        ),
        ('question = "?"\nquick = { steeds = 3 }\nvariants = []', "did you mean 'seeds'"),
        (
            'question = "?"\nquick.seeds = 0\n[[variants]]\nname="a"\n[[variants]]\nname="b"',
            "seeds of .* must be >= 1",
        ),
        ('question = "?"\nrecipe = "smal"\nvariants = []', "did you mean 'small'"),
        ("question =", "is not valid TOML"),
        ('question = "?"\nquick = 3\nvariants = []', "'quick' of the .* must be a table"),
    ],
)
def test_mistakes_are_named(tmp_path, content, printed):
    with pytest.raises(ValueError, match=printed):
        experiments.read(own(tmp_path, content), "quick")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'normalizer'"):
        experiments.read("normaliser", "quick")


def test_recipes_are_compared_with_the_first(tmp_path):
    files = [
        own(tmp_path, f"text = 'manual'\n[model]\nwidth = {width}\n", f"w{width}.toml")
        for width in (8, 16)
    ]
    experiment = experiments.of_recipes(files, "quick")
    assert [(each.name, each.against) for each in experiment.variants] == [
        ("w8", None),
        ("w16", "w8"),
    ]
    assert not experiments.is_experiment(files[0])
    assert experiments.is_experiment("scale")
    (tmp_path / "other").mkdir()
    files[1] = own(tmp_path, "[model]\nwidth = 4\n", "other/w8.toml")
    assert [each.name for each in experiments.of_recipes(files, "full").variants] == files


@pytest.mark.parametrize(
    "other", ["tokenizer = 'char'", "text = 'verdict'", "model.vocabulary = 300"]
)
def test_losses_of_different_tokens_are_not_compared(tmp_path, other):
    files = [own(tmp_path, "text = 'manual'\n", "a.toml"), own(tmp_path, other, "b.toml")]
    if not other.startswith("text"):
        files[1] = own(tmp_path, f"text = 'manual'\n{other}", "b.toml")
    with pytest.raises(ValueError, match="their texts or tokenizers differ"):
        experiments.of_recipes(files, "quick")


def test_a_budget_leaves_a_variants_own_steps_alone(tmp_path):
    file = own(
        tmp_path,
        'question = "Longer?"\nquick.steps = 7\n[[variants]]\nname = "a"\n'
        '[[variants]]\nname = "b"\ntraining.steps = 9\n',
    )
    result = experiments.read(file, "quick").variants
    assert [each.settings["training"]["steps"] for each in result] == [7, 9]


def test_the_report_s_folder_tells_experiment_text_and_size(text):
    experiment = experiments.read("kv-heads", "full").with_text(text)
    assert experiment.folder == "kv-heads-text-full"


# The climb


def test_the_climb_has_a_rung_a_variant_each_against_the_one_before(text):
    experiment = climb.experiment(text, "quick")
    *rungs, leak = experiment.variants
    assert [each.settings["rung"] for each in rungs] == [each.name for each in rungs]
    assert [each.against for each in rungs] == [None, *(each.name for each in rungs[:-1])]
    assert all(each.settings["model"].get("causal", True) for each in rungs)
    assert leak.apart
    assert leak.against is None
    assert (leak.settings["rung"], leak.settings["model"]["attention"]["causal"]) == (
        "trainable",
        False,
    )
    assert {each.settings["text"] for each in experiment.variants} == {text}


def test_the_mlp_makes_up_for_what_a_rung_lacks(text):
    variants = climb.experiment(text, "quick").variants
    result = [parameters(each.settings) for each in variants]
    assert max(result) - min(result) <= 3 * 129, result  # half a unit of the MLP in each layer
    sizes = {v.name: preset("gpt2", v.settings["model"], vocabulary=1).mlp_width for v in variants}
    assert sizes["fixed"] > sizes["causal"] > sizes["multihead"]


def test_values_of_settings_are_all_combinations():
    result = experiments.of_values(["heads=2,4", "tokenizer=char", "norm.kind=rms"], "lab", "quick")
    names = [variant.name for variant in result.variants]
    assert names == ["heads=2 tokenizer=char norm.kind=rms", "heads=4 tokenizer=char norm.kind=rms"]
    assert [v.settings["model"]["attention"]["heads"] for v in result.variants] == [2, 4]
    assert {v.settings["tokenizer"] for v in result.variants} == {"char"}
    assert [variant.against for variant in result.variants] == [None, names[0]]
    assert len(experiments.of_values(["heads=2,4", "width=32,64"], "lab", "quick").variants) == 4
    short = result.with_budget(2, 7)
    assert (short.seeds, short.variants[1].settings["training"]["steps"]) == (2, 7)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("haeds=2,4", "did you mean 'heads'"),
        ("heads", "must be NAME=VALUE,VALUE"),
        ("heads=2,,4", "must be NAME=VALUE,VALUE"),
        ("heads=2", "at least two variants"),
    ],
)
def test_invalid_values_are_refused(assignment, message):
    with pytest.raises(ValueError, match=message):
        experiments.of_values([assignment], "lab", "quick")
