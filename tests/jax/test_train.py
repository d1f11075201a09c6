"""Training in JAX: resumed to the bit, in either engine; what is not finite; the files."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import headway
from gpts import PRESETS, gpt_config
from headway import engines
from headway.attention.spec import Spec
from headway.data.tokenizers import Tokenizer, digest
from headway.jax import gpt, train, weights
from headway.training import checkpoints, loop
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

CORPUS = "".join(np.random.default_rng(0).choice(list("abcdef \n"), 600))
TOKENIZER = Tokenizer.characters(CORPUS)
TOKENS = TOKENIZER.encode(CORPUS)[:500], TOKENIZER.encode(CORPUS)[500:]


pytestmark = pytest.mark.xdist_group("training in JAX")  # which share a run


def run_config(rung=None, steps=6, **model):
    sizes = {"vocabulary": TOKENIZER.vocabulary, "context": 8, "width": 8, "layers": 1, "heads": 2}
    training = TrainingConfig(
        *(steps, 4), optimizer="muon", evaluate_every=3, save_every=2, precision="float32"
    )
    return RunConfig(
        *("next-token", "text", digest(CORPUS), "char", TOKENIZER.fingerprint, rung),
        gpt_config(**{**sizes, **model}),
        replace(training, compile=False),
    )


def trained(engine, run, of, steps):
    """Go on with a run, or begin it, up to so many steps; what was different."""
    trainer = engines.engine_named(engine).trainer(of, TOKENS)
    told = loop.resume(trainer, run, of)
    loop.fit(trainer, run, of, interrupted=lambda: trainer.step >= steps)
    return trainer, told


def run_in(folder, of):
    return Run.create(folder, of, TOKENIZER)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    of = run_config(dropout=0.1)
    run = run_in(tmp_path_factory.mktemp("complete") / "run", of)
    trained("jax", run, of, 6)
    return of, run


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, uninterrupted):
    of, complete = uninterrupted
    run = run_in(tmp_path / "run", of)
    for steps in (2, 3, 6):
        _, told = trained("jax", run, of, steps)
        assert told == []
    for part in ("model", "optimizer"):
        one, other = (
            checkpoints.load(checkpoints.latest(item.checkpoints), part)[0]
            for item in (run, complete)
        )
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    one, other = (
        [{k: v for k, v in line.items() if k != "seconds"} for line in item.logged()]
        for item in (run, complete)
    )
    assert one == other


@pytest.mark.parametrize("first", ["torch", "jax"])
def test_a_run_goes_on_in_the_other_engine_and_says_so(tmp_path, uninterrupted, first):
    of, complete = uninterrupted
    run, second = run_in(tmp_path / "run", of), {"torch": "jax", "jax": "torch"}[first]
    assert loop.engine_of(run) == "torch"
    trained(first, run, of, 3)
    assert loop.engine_of(run) == first
    _, told = trained(second, run, of, 6)
    assert any(line == f"engine was {first}, is {second}" for line in told)
    assert loop.engine_of(run) == second
    losses, expected = ([line["loss"] for line in item.logged()] for item in (run, complete))
    assert losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("first", "rung", "model"),
    [
        ("jax", None, {}),
        ("torch", None, PRESETS["relative"]),
        ("jax", None, PRESETS["llama"]),
        ("torch", "stacked", {}),
    ],
    ids=str,
)
def test_files_are_interchanged_byte_for_byte(tmp_path, first, rung, model):
    """Written by one engine, loaded by the other, saved again: the same bytes."""
    of = run_config(rung, heads=4, steps=1, **model)
    second = {"torch": "jax", "jax": "torch"}[first]
    run = run_in(tmp_path / "run", of)
    trained(first, run, of, 1)
    checkpoint = checkpoints.latest(run.checkpoints)
    other = engines.engine_named(second).trainer(of, TOKENS)
    loop.resume(other, run, of)
    _, about = checkpoints.load(checkpoint)
    again = checkpoints.save(tmp_path / "again", other.step, other.state(), about)
    for name in ("model.safetensors", "optimizer.safetensors", "SHA256SUMS"):
        assert (again / name).read_bytes() == (checkpoint / name).read_bytes(), name
    tokens = TOKENS[0][None, :8]
    one, two = (
        np.asarray(item.logits(item.load(run), tokens))
        for item in map(engines.engine_named, ("torch", "jax"))
    )
    assert np.allclose(one, two, rtol=0, atol=1e-5)


def test_weights_of_another_model_are_refused(tmp_path):
    of = run_config(steps=1)
    run = run_in(tmp_path / "run", of)
    trained("jax", run, of, 1)
    other = weights.build(replace(of, model=replace(of.model, width=16)))
    with pytest.raises(ValueError, match=r"another model: .* must be of shape"):
        weights.filled(other.params, checkpoints.load(checkpoints.latest(run.checkpoints))[0])


def same(one, other):
    return all(np.array_equal(one[part][n], other[part][n]) for part in one for n in one[part])


def test_what_is_not_finite_is_told_and_changes_nothing():
    of = run_config(dropout=0.1)
    trainer = engines.engine_named("jax").trainer(of, TOKENS)
    trainer.advance()
    before = trainer.state()
    name = "blocks.0.mlp.up.weight"

    def with_weight(value):
        params = {**trainer.model.params, name: jnp.asarray(value)}
        trainer._state = trainer._state._replace(params=params)

    with_weight(before["model"][name] * np.nan)
    first = trainer.start()
    with_weight(before["model"][name])
    second = trainer.start()  # finite, but it must not change the weights either
    assert np.isfinite(second.result().loss)
    assert same(trainer.state(), before)
    with_weight(before["model"][name] * np.nan)
    with pytest.raises(loop.NotFinite, match=r"step 2 is nan: the first .* blocks.0.mlp.hidden"):
        first.result()
    assert trainer.step == 1
    with_weight(before["model"][name])
    assert same(trainer.state(), before)
    assert np.isfinite(trainer.advance().loss)
    assert not same(trainer.state(), before)


def test_a_step_takes_the_memory_of_the_one_before():
    of = run_config()
    trainer = engines.engine_named("jax").trainer(of, TOKENS)
    given = weights.build(of)
    before = trainer.model.params
    trainer.advance()
    trainer.advance()
    assert all(p.is_deleted() for p in before.values())
    assert trainer._advance._cache_size() == 1
    # What was given is the caller's.
    other = train.Trainer(given, *TOKENS, of.training)
    other.advance()
    assert not any(p.is_deleted() for p in given.params.values())


def test_bfloat16_computes_in_it_and_keeps_float32():
    of = run_config()
    model = weights.build(of)
    training = replace(of.training, precision="bfloat16")
    trainer, usual = (train.Trainer(model, *TOKENS, item) for item in (training, of.training))
    for _ in range(6):
        result, expected = trainer.advance(), usual.advance()
    assert result.loss != expected.loss
    assert result.loss == pytest.approx(expected.loss, rel=0.02)
    state = trainer.state()
    assert {a.dtype for part in state.values() for a in part.values()} == {np.dtype("float32")}
    inner = str(
        jax.make_jaxpr(
            lambda p: train.loss(
                p, TOKENS[0][None, :8], TOKENS[0][None, 1:9], of.model, bfloat16=True
            )
        )(model.params)
    )
    assert "bf16[1,8,32]" in inner  # inside the MLP


def test_sines_of_late_positions_are_exact_in_bfloat16():
    of = gpt_config(11, 400, 8, 1, 2, positions="sinusoidal")
    params, tokens = gpt.init(of, 0), np.zeros((1, 400), int)
    rounded = {name: p.astype(jnp.bfloat16) for name, p in params.items()}
    with headway.trace("embedded") as steps:
        gpt.forward(params, tokens, of)
    with headway.trace("embedded") as coarse:
        gpt.forward(rounded, tokens, of)
    one, other = (np.asarray(item["embedded"].astype(jnp.float32)) for item in (steps, coarse))
    assert np.abs(one - other).max() < 1e-3  # the sines reach 0.03


def test_seeds_are_numbers_or_keys():
    of = run_config().model
    one, other = gpt.init(of, 5), gpt.init(of, jax.random.key(6))
    name = "embedding.weight"
    assert not np.array_equal(one[name], other[name])
    assert np.array_equal(other[name], gpt.init(of, 6)[name])


def test_activation_checkpointing_changes_no_loss_and_no_gradient():
    of = run_config(dropout=0.1, layers=2).model
    params, tokens = gpt.init(of, 0), TOKENS[0][:36].reshape(4, 9)

    def gradients(params, **options):
        def loss(params):
            spec = Spec(seed=1)
            return train.loss(params, tokens[:, :-1], tokens[:, 1:], of, spec=spec, **options)

        return jax.value_and_grad(loss)(params)

    usual, again = gradients(params), gradients(params, activation_checkpointing=True)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-7), usual, again))
    jaxpr = str(jax.make_jaxpr(lambda p: gradients(p, activation_checkpointing=True))(params))
    assert jaxpr.count("checkpoint") >= of.layers or jaxpr.count("remat") >= of.layers
