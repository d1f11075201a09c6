"""Training learns and repeats, a run comes back from disk, and writes with and without cache."""

import json

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from gpts import MODERN, gpt_config
from headway.data.tokenizers import Tokenizer
from headway.ladder.rungs import LADDER
from headway.torch import GPT, weights
from headway.torch.generate import generate
from headway.torch.gpt import multi_head, of_rung
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training import checkpoints
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

TEXT = "the cat sat on the mat, the dog sat on the log. " * 40


def small(**changes):
    sizes = {"vocabulary": 27, "context": 16, "width": 16, "layers": 1, "heads": 2}
    return gpt_config(**{**sizes, **changes})


def of_run(rung, model=None, training=None):
    return RunConfig(
        *("next-token", "text", "12ab", "char", "34cd", rung),
        model or small(),
        training or TrainingConfig(steps=2),
    )


def trained(config, attention=multi_head, steps=60, **settings):
    tokenizer = Tokenizer.characters(TEXT)
    tokens = tokenizer.encode(TEXT)
    model = GPT(config, attention)
    settings = {"batch": 8, "learning_rate": 1e-2, "evaluate_every": 20, **settings}
    training = TrainingConfig(steps=steps, **settings)
    trainer = Trainer(model, NextToken(model, tokens[:-300], tokens[-300:], training), training)
    return model, [trainer.advance() for _ in range(steps)]


@pytest.mark.parametrize("name", [None, *LADDER])
def test_every_rung_learns(name):
    attention = multi_head if name is None else of_rung(LADDER[name])
    _, steps = trained(small(), attention)
    assert [s.step for s in steps if s.validation is not None] == [20, 40, 60]
    assert steps[0].loss == pytest.approx(np.log(27), abs=0.2)
    assert steps[-1].validation < 1.9
    assert steps[-1].tokens == 60 * 8 * 16


def test_training_is_repeatable_with_dropout_and_follows_its_seed():
    runs = [trained(small(dropout=0.2, **MODERN), steps=5, seed=s) for s in (0, 0, 1)]
    losses = [[s.loss for s in steps] for _, steps in runs]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    for p, q in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        assert torch.equal(p, q)


def test_evaluation_is_the_mean_over_windows_of_any_batch():
    model, tokens = GPT(small()), np.random.default_rng(0).integers(0, 27, 5 * 16 + 1)

    def evaluate(batch, held_out=tokens):
        training = TrainingConfig(batch=batch)
        return Trainer(model, NextToken(model, tokens, held_out, training), training).evaluate()

    one, other = (evaluate(batch) for batch in (2, 5))
    assert one == pytest.approx(other, rel=1e-6)
    alone = [evaluate(1, tokens[16 * i : 16 * i + 17]) for i in range(5)]
    assert one == pytest.approx(np.mean(alone), rel=1e-6)


@pytest.mark.parametrize("rung", [None, "simplified", "stacked"])
def test_a_run_comes_back_from_disk(tmp_path, rung):
    tokenizer = Tokenizer.characters(TEXT)
    config = of_run(rung)
    run = Run.create(tmp_path / "run", config, tokenizer)
    model = weights.build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    saved = checkpoints.save(run.checkpoints, 2, {"model": weights.to_arrays(model)}, {"step": 2})
    assert Run.open(tmp_path / "run").config == config
    loaded = weights.load(Run.open(tmp_path / "run"))
    tokens = torch.randint(0, 27, (1, 8))
    assert torch.equal(loaded.eval()(tokens), model.eval()(tokens))
    assert loaded.head.weight is loaded.embedding.weight  # still tied
    again = checkpoints.save(
        tmp_path / "again", 2, {"model": weights.to_arrays(loaded)}, {"step": 2}
    )
    name = "model.safetensors"
    assert (saved / name).read_bytes() == (again / name).read_bytes()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    config = of_run(None)
    run = Run.create(tmp_path / "run", config, Tokenizer.characters(TEXT))
    other = GPT(small(width=8))
    checkpoints.save(run.checkpoints, 1, {"model": weights.to_arrays(other)}, {})
    with pytest.raises(ValueError, match="weights of another model: blocks"):
        weights.load(run)
    wrong = run.path / "config.json"
    settings = json.loads(wrong.read_text())
    settings["model"]["contxt"] = 3
    wrong.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no 'contxt'; did you mean 'context'"):
        weights.load(run)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_frozen_parameters_do_not_change(precision):
    tokens = np.random.default_rng(0).integers(0, 27, 200)
    training = TrainingConfig(batch=4, precision=precision, optimizer="muon", compile=False)
    model = GPT(small())
    frozen = [model.embedding.weight, model.blocks[0].attention.q.weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Trainer(model, NextToken(model, tokens, tokens, training), training).advance()
    for name, parameter in model.named_parameters():
        is_same = torch.equal(parameter, before[name])
        assert is_same == any(parameter is p for p in frozen) or parameter.ndim == 1, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_frozen_layers_keep_nothing_for_the_backward_pass(precision):
    tokens = np.random.default_rng(0).integers(0, 27, 200)
    training = TrainingConfig(batch=4, precision=precision, compile=False)
    sizes = []
    for is_frozen in (False, True):
        model, kept = GPT(small(layers=3, **MODERN)), []
        for part in (model.embedding, model.blocks):
            part.requires_grad_(not is_frozen)
        trainer = Trainer(model, NextToken(model, tokens, tokens, training), training)
        with saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            trainer.start()
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 5


def test_bfloat16_computes_in_it_and_keeps_float32():
    _, usual = trained(small(**MODERN), steps=6, precision="float32")
    model, steps = trained(small(**MODERN), steps=6, precision="bfloat16")
    assert steps[-1].loss != usual[-1].loss
    assert steps[-1].loss == pytest.approx(usual[-1].loss, rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


PROMPT = np.array([3, 1, 4, 1, 5])


def test_writing_from_the_cache_equals_writing_without(monkeypatch):
    torch.manual_seed(0)
    model = GPT(small(**MODERN)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    cached = list(generate(model, [PROMPT], tokens=40, seed=3))
    monkeypatch.setattr(GPT, "can_cache", False)
    assert list(generate(model, [PROMPT], tokens=40, seed=3)) == cached
    assert len({token for (token,) in cached}) > 5


def test_writing_is_a_function_of_its_seed_and_refuses_nothing_to_go_on_from():
    model = GPT(small())
    one, other = (list(generate(model, [PROMPT], tokens=30, seed=s)) for s in (0, 1))
    assert one == list(generate(model, [PROMPT], tokens=30, seed=0))
    assert one != other
    with pytest.raises(ValueError, match="prompt is empty"):
        list(generate(model, [PROMPT[:0]], tokens=1))


def test_a_prompt_longer_than_the_context_keeps_its_end():
    model = GPT(small())
    long = np.arange(40) % 27
    one = list(generate(model, [long], tokens=5, seed=0))
    assert one == list(generate(model, [long[-16:]], tokens=5, seed=0))


def test_gradients_are_clipped_and_their_norm_before_is_told():
    model, (step,) = trained(small(), steps=1, clip=0.01)
    left = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert left == pytest.approx(0.01, rel=1e-3)
    assert step.gradient_norm > 0.1
