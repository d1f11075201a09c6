"""The runs of an experiment, and what is reported of them: small ones, really trained."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import headway
from command import headway as headway_command
from gpts import gpt_config
from headway.engines import engine_named
from headway.lab import comparison as comparisons
from headway.lab import health, work
from headway.lab.comparison import Comparison
from headway.lab.experiments import Experiment, Variant
from headway.lab.page import pictures, write
from headway.ladder.rungs import LADDER
from headway.models.gpt import overlaid
from headway.torch.gpt import GPT, of_rung
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training import recipes
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

# On one worker, because the tests share a fixture that takes seconds.
pytestmark = pytest.mark.xdist_group("lab")

TEXT = "It was the best of times, it was the worst of times.\n" * 60
TINY = {
    "model": {"context": 16, "width": 8, "layers": 2, "attention": {"heads": 2}},
    "training": {"steps": 6, "batch": 2, "evaluate_every": 3, "evaluation_windows": 4},
}


def experiment(text, seeds=2, **changes):
    base = overlaid({**recipes.read("lab"), "text": str(text)}, TINY)
    other = overlaid(base, {"model": {}, "training": {"learning_rate": 0.03}})
    broken = overlaid(
        base, {"model": {"attention": {"normalizer": "sparsemax"}}, "training": changes}
    )
    variants = [Variant("slow", base), Variant("fast", other, "slow")]
    variants.append(Variant("odd <b>", broken, "slow", apart="only to see"))
    return Experiment("trial", "Is <fast> better?", variants, seeds)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """An experiment that ended, and its folder."""
    place = tmp_path_factory.mktemp("lab")
    (place / "text.txt").write_text(TEXT)
    trial = experiment(place / "text.txt")
    assert work.run(trial.jobs, place / work.RUNS) == {}
    return trial, place


def complete(done, **more):
    trial, place = done
    return Comparison(
        trial, comparisons.gather(trial.jobs, place / work.RUNS), "headway compare trial", **more
    )


def test_every_run_is_a_run_like_any_other(done):
    trial, place = done
    for job in trial.jobs:
        run = Run.open(place / work.RUNS / job.folder)
        assert [line["step"] for line in run.logged()] == [1, 2, 3, 4, 5, 6]
        assert run.config.training.seed == job.seed
        assert run.config.model.width == 8


def test_a_run_is_what_train_would_have_made_of_it(done):
    """On the same thread, bit for bit: the lab adds looks and takes nothing."""
    from headway.data.batches import prepared, split
    from headway.torch import weights

    trial, place = done
    job = trial.jobs[0]
    run = Run.open(place / work.RUNS / job.folder)
    plan = recipes.plan(job.settings)
    model = weights.build(run.config)
    tokens = split(prepared(plan.source.text, plan.tokenizer), run.config.model.context)
    task = NextToken(model, *tokens, run.config.training)
    trainer = Trainer(model, task, run.config.training)
    assert [trainer.advance().loss for _ in range(6)] == [line["loss"] for line in run.logged()]


def test_what_is_there_is_not_done_again_and_what_is_missing_is(done):
    trial, place = done
    runs = place / work.RUNS
    first, *others = [runs / job.folder for job in trial.jobs]
    before = {each: (each / "log.jsonl").stat().st_mtime_ns for each in (first, *others)}
    wanted = (first / work.RESULT).read_text()
    (first / work.RESULT).unlink()
    assert work.run(trial.jobs, runs) == {}
    assert {each: (each / "log.jsonl").stat().st_mtime_ns for each in others} == {
        each: before[each] for each in others
    }
    again = json.loads((first / work.RESULT).read_text())
    assert again["sample"] == json.loads(wanted)["sample"]


def test_the_table_tells_the_losses_by_seed(done):
    output = complete(done)
    trial, place = done
    for variant in trial.variants:
        losses = [
            Run(place / work.RUNS / job.folder).logged()[-1]["validation"]
            for job in trial.jobs
            if job.variant == variant.name
        ]
        row = comparisons.record(output, variant)
        assert row["loss"] == pytest.approx(np.mean(losses))
        assert (row["low"], row["high"]) == (min(losses), max(losses))
        assert row["parameters"] > 1000
        assert row["memory"] > 0
        assert row["tokens_per_second"] > 100
        assert 0 < row["entropy"] <= 1
        assert 0 < row["first"] < 1
        assert row["largest"] > 0
    (effect,) = output.effects
    assert (effect.variant, effect.against) == ("fast", "slow")
    assert output.ranked[-1].name == "odd <b>", "what stands apart is not ranked"


def test_the_report_is_written_in_three_forms(done):
    place = write(complete(done, remarks=["something & more"]), done[1])
    output = json.loads((place / "report.json").read_text())
    assert [each["name"] for each in output["variants"]][-1] == "odd <b>"
    assert all(len(each["runs"]) == 2 for each in output["variants"])
    assert output["variants"][0]["runs"][0]["curve"][-1][0] == 6
    assert output["command"] == "headway compare trial"
    (machine,) = output["machines"]
    assert machine["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert machine["precision"] == "float32"
    text = (place / "report.md").read_text()
    page = (place / "index.html").read_text()
    for message in ("fast compared with slow: undecided", "only to see"):
        assert message in text
        assert message in page
    assert "headway compare trial" in text
    assert "Is &lt;fast&gt; better?" in page
    assert "<b>" not in page.replace("<b>slow", "").replace("<b>fast", "").replace("<b>odd", "")
    assert "something &amp; more" in page
    assert not re.search(r'(?:src|href)="http', page), "a page that needs a network"
    assert page.count("data:image/png;base64") == 3
    assert {file.name for file in place.glob("*.png")} >= {"loss.png", "entropy.png", "first.png"}


def test_a_run_that_fails_is_shown_and_the_others_go_on(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    trial = experiment(tmp_path / "text.txt", seeds=1, learning_rate=1e30, clip=1e30)
    assert work.run(trial.jobs, tmp_path / "runs") == {}
    output = Comparison(trial, comparisons.gather(trial.jobs, tmp_path / "runs"), "again")
    assert [run.failed != "" for run in output.runs] == [False, False, True]
    message = next(each for each in comparisons.answers(output) if "failed" in each)
    assert "odd <b>, seed 0, failed: the loss of step" in message
    row = comparisons.record(output, trial.variants[2])
    assert row["loss"] is None
    assert row["ended"] == "0/1, 1 failed"
    place = write(output, tmp_path)
    assert "0/1, 1 failed" in (place / "report.md").read_text()
    assert "0/1, 1 failed" in (place / "index.html").read_text()
    (file,) = (tmp_path / "runs").glob(f"*/{work.FAILED}")
    before = file.stat().st_mtime_ns
    assert work.run(trial.jobs, tmp_path / "runs") == {}
    assert file.stat().st_mtime_ns == before, "it would fail again, and is not repeated"


@pytest.mark.slow  # three trainings; that a run goes on bit for bit is tested in tests/cli too
def test_stopped_and_gone_on_with_is_the_run_that_nobody_stopped(done, tmp_path):
    """Stopped in the middle; then to the end."""
    _, place = done
    runs = tmp_path / "runs"
    one, *_ = experiment(place / "text.txt").variants
    one.settings["training"]["steps"] = 600
    long = Experiment("long", "?", [one], 1)
    assert work.run(long.jobs, runs, stopped=lambda: [*runs.glob("*/log.jsonl")] != []) == {}
    half = long.jobs[0].folder
    assert 0 < len(Run(runs / half).logged()) < 600
    with (runs / half / work.HEALTH).open("a") as file:
        file.write('{"step": 1, "entr')  # cut off by a power cut
    assert work.run(long.jobs, runs) == {}
    straight = tmp_path / "straight"
    assert work.run(long.jobs, straight) == {}
    for job in long.jobs:
        one, other = (Run(folder / job.folder).logged() for folder in (runs, straight))
        assert [line["loss"] for line in one] == [line["loss"] for line in other]
        assert [line["step"] for line in one] == [*range(1, 601)]
        same = [(folder / job.folder / work.HEALTH).read_text() for folder in (runs, straight)]
        assert same[0] == same[1]


def test_two_processes_do_not_train_the_same_runs(done):
    trial, place = done
    runs = place / work.RUNS
    (runs / trial.jobs[0].folder / work.RESULT).rename(place / "kept")
    line = "import sys; from pathlib import Path; from headway import cache\n"
    line += "with cache.locked(Path(sys.argv[1])): print('in', flush=True); input()"
    command = [sys.executable, "-c", line, runs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(ValueError, match="another process uses"):
            work.run(trial.jobs, runs)
        other.communicate(b"\n")
    (place / "kept").rename(runs / trial.jobs[0].folder / work.RESULT)


def test_one_seed_that_failed_late_leaves_the_curve_of_the_others(done):
    trial, place = done
    output = comparisons.gather(trial.jobs, place / work.RUNS)
    cut = [dataclasses.replace(output[0], curve=output[0].curve[:1], result=None, failed="so")]
    drawn = {each.name: each for each in pictures(Comparison(trial, cut + output[1:], "again"))}
    assert {"loss", "entropy", "largest", "first", "query_gradient"} == set(drawn)
    names = re.findall(r">(slow|fast|odd &lt;b&gt;)<", drawn["loss"].svg)
    assert sorted(names) == ["fast", "odd &lt;b&gt;", "slow"]


# Training health


@pytest.mark.parametrize("name", [name for name in LADDER if name != "tiled"])
def test_every_rung_is_looked_at_head_by_head(name):
    config = gpt_config(vocabulary=9, context=8, width=16, layers=2, heads=4)
    model = GPT(config, of_rung(LADDER[name]))
    tokens = np.arange(24).reshape(3, 8) % 9
    weights, scores = health.seen(engine_named(), model, tokens)
    heads = 4 if LADDER[name].has_heads else 1
    assert [each.shape for each in weights] == [(3, heads, 8, 8)] * 2
    assert [each.shape for each in scores] == [(3, heads, 8, 8)] * 2
    assert all(np.allclose(each.sum(-1), 1) for each in weights)
    assert all((np.triu(each, 1) == 0).all() for each in weights)
    assert model.training


def test_entropy_is_1_for_equal_weights_and_0_for_one_token():
    equal = np.tril(np.ones((5, 5)))
    equal /= equal.sum(-1, keepdims=True)
    assert health.entropy(np.stack([equal, np.eye(5)])[None]) == pytest.approx([1.0, 0.0])
    everywhere = np.full((1, 1, 5, 5), 0.2)
    assert health.entropy(everywhere, causal=False) == pytest.approx([1.0])


def test_health_is_that_of_the_weights_and_of_the_gradient():
    config = gpt_config(vocabulary=9, context=8, width=16, layers=2, heads=4)
    model = GPT(config, of_rung(LADDER["multihead"]))
    inputs = np.arange(16).reshape(2, 8) % 9
    targets = (inputs + 1) % 9
    output = health.look(engine_named(), model, inputs, targets)
    with torch.no_grad(), headway.trace("blocks.1.attention.*") as steps:
        model.eval()(torch.from_numpy(inputs))
    weights = steps["blocks.1.attention.weights"]
    assert output.first[1] == pytest.approx(weights[:, :, 1:, 0].mean((0, 2)).tolist())
    scaled = steps["blocks.1.attention.scaled"].masked_fill(weights == 0, -torch.inf)
    assert output.largest[1] == pytest.approx(scaled.amax((0, 2, 3)).tolist())
    logits = model(torch.from_numpy(inputs))
    cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()).backward()
    gradient = model.blocks[0].attention.W_query.grad
    assert output.query_gradient[0] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert len(output.query_gradient) == 2


@pytest.mark.parametrize("rung", ["fused", pytest.param("stacked", marks=pytest.mark.slow)])
def test_both_engines_find_the_same_health(rung):
    config = gpt_config(vocabulary=9, context=8, width=16, layers=2, heads=4)
    tokens = np.arange(200) % 9
    training = TrainingConfig(steps=9, batch=2, precision="float32", compile=False)
    run = RunConfig("next-token", "text", "", "char", "", rung, config, training)
    inputs, results = np.arange(16).reshape(2, 8) % 9, []
    for engine in map(engine_named, ("torch", "jax")):
        trainer = engine.trainer(run, (tokens, tokens))
        trainer.advance()
        results.append(health.look(engine, trainer.model, inputs, inputs[::-1].copy()))
    for one, other in zip(*results, strict=True):
        assert np.asarray(one) == pytest.approx(np.asarray(other), abs=1e-5)


def test_a_mechanism_without_queries_has_no_such_gradient():
    config = gpt_config(vocabulary=9, context=8, width=16, layers=2, heads=1)
    model = GPT(config, of_rung(LADDER["simplified"]))
    zeros = np.zeros((1, 8), dtype=np.int64)
    assert health.look(engine_named(), model, zeros, zeros).query_gradient == []


def test_the_norms_of_queries_come_layer_by_layer_whatever_the_order_of_the_names():
    named = {f"blocks.{n}.attention.q.weight": np.full((2, 2), n + 1.0) for n in range(12)}
    output = health.query_norms({name: named[name] for name in sorted(named)})
    assert output == [pytest.approx(2 * (n + 1.0)) for n in range(12)]


# The command


HEADWAY = Path(sys.executable).with_name("headway")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare"], "give one experiment"),
        (["compare", "normaliser"], "did you mean 'normalizer'"),
        (["compare", "nowhere.toml"], "nowhere.toml"),
        (["compare", "heads", "--quick", "--full"], "exclude each other"),
        (["compare", "heads", "scale"], "give one experiment, or the .toml"),
        (["climb", "nowhere.txt"], "nowhere.txt"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(tmp_path, words, message):
    output = subprocess.run([HEADWAY, *words], cwd=tmp_path, capture_output=True, text=True)
    assert output.returncode in (1, 2)
    assert output.stderr.count("\n") == 1
    assert message in output.stderr
    assert not [*tmp_path.iterdir()]


def test_a_text_that_is_too_short_is_said_once_and_before_any_run(tmp_path):
    (tmp_path / "short.txt").write_text("short")
    line = [HEADWAY, "climb", "short.txt"]
    output = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert output.returncode == 1
    assert output.stderr.count("\n") == 1
    assert "the text has 5 tokens, too few for a context of 64" in output.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["short.txt"]


def test_ctrl_c_writes_what_there_is_and_says_how_to_go_on(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 10)
    (tmp_path / "own.toml").write_text(
        'question = "?"\ntext = "text.txt"\nquick = { seeds = 1, steps = 100000 }\n'
        "model = { width = 8, layers = 1, context = 16 }\n"
        "training = { evaluate_every = 5, evaluation_windows = 2, batch = 1 }\n"
        '[[variants]]\nname = "a"\n[[variants]]\nname = "b"\nmodel.attention.heads = 2\n'
    )
    done = headway_command(
        tmp_path,
        *("compare", "own.toml"),
        rc=130,
        interrupt=lambda: [*tmp_path.glob("lab/runs/*/health.jsonl")],
    )
    assert "stopped; continue with: headway compare own.toml --quick" in done.stdout
    place = tmp_path / "lab" / "own-text-quick"
    output = json.loads((place / "report.json").read_text())
    assert "2 of 2 runs have not ended" in output["answers"]
    assert (place / "index.html").is_file()
    assert [*tmp_path.glob("lab/runs/*/checkpoints/step-*")], "what was trained is kept"
