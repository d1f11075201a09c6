"""A fault planted in attention.formula must change every result that attention computes.

A result that does not change comes from a copy of the formula, which must be deleted.
"""

import inspect
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import headway
from gpts import MODERN, gpt_config
from headway.attention import dispatch
from headway.attention import formula as mechanism
from headway.attention.spec import Spec
from headway.explore import trace_file
from headway.jax import gpt
from headway.jax.layers import with_attend
from headway.ladder.rung import run_example
from headway.ladder.rungs import LADDER
from headway.models.seq2seq import Seq2SeqConfig
from headway.torch import GPT, MultiHeadAttention
from headway.torch.gpt import multi_head
from headway.torch.seq2seq import Seq2Seq
from headway.torch.translate import alignment

LINE = 'tap("scaled", scores * scale_of(spec.scale, queries))'
FAULT = 'tap("scaled", scores * (2 * scale_of(spec.scale, queries)))'


@pytest.fixture
def plant(monkeypatch):
    """Double the scale in the code object of the function, so that all importers run the fault."""

    def do():
        original = inspect.unwrap(mechanism.attention)
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(LINE) == 1
        names = {}
        code = "from __future__ import annotations\n" + source.replace(LINE, FAULT)
        exec(compile(code, original.__code__.co_filename, "exec"), original.__globals__ | {}, names)
        monkeypatch.setattr(original, "__code__", names["attention"].__code__)

    return do


plain = partial(dispatch.run, kernel="plain")


def everything():
    """The results of all code that computes attention, by name."""
    results = {}
    for name, rung in LADDER.items():
        _, _, context = run_example(rung)
        results[f"ladder {name}"] = context
    torch.manual_seed(0)
    module = MultiHeadAttention(12, heads=3, attend=plain)
    with torch.no_grad():
        results["MultiHeadAttention"] = module(torch.randn(2, 5, 12)).numpy()
        for preset in ({}, MODERN):
            config = gpt_config(vocabulary=11, context=8, width=12, layers=2, heads=3, **preset)
            model = GPT(config, lambda config: multi_head(config, plain)).eval()
            for parameter in model.parameters():
                parameter.normal_()
            tokens = torch.arange(8)[None]
            results[f"GPT {config.norm.kind}, plain"] = model(tokens).numpy()
            with headway.trace() as steps:
                usual = GPT(config).eval()
                usual.load_state_dict(model.state_dict())
                traced = usual(tokens)
            results[f"GPT {config.norm.kind}, traced"] = traced.numpy()
            results[f"GPT {config.norm.kind}, trace"] = steps["blocks.1.attention.weights"].numpy()
            run = partial(lambda model, part: model(torch.arange(8)[None, part]), model)
            tensors, _ = trace_file.record(run, np.arange(8))
            params = {n: jnp.asarray(p.numpy()) for n, p in model.named_parameters()}
            of = (config, with_attend(plain))
            ask = jax.jit(lambda params, of=of: gpt.forward(params, np.arange(8)[None], *of))
            results[f"GPT {config.norm.kind} on JAX, jitted"] = np.asarray(ask(params))
            with headway.trace() as steps:
                traced = gpt.forward(params, np.arange(8)[None], config)
            results[f"GPT {config.norm.kind} on JAX, traced"] = np.asarray(traced)
            results[f"GPT {config.norm.kind} on JAX, trace"] = np.asarray(
                steps["blocks.1.attention.weights"]
            )
            results[f"GPT {config.norm.kind}, trace file"] = tensors["blocks.1.attention.weights"]
    for kind in ("bahdanau", "luong", "transformer"):
        config = Seq2SeqConfig(kind, vocabulary=11, context=8, width=12)
        model, source = Seq2Seq(config, seed=1).eval(), np.array([5, 6, 7, 2])
        with torch.no_grad(), headway.trace("decoder.*weights") as steps:
            logits = model(
                torch.from_numpy(source)[None], torch.tensor([4]), torch.arange(1, 6)[None]
            )
        results[f"translator {kind}, traced"] = logits.numpy()
        results[f"translator {kind}, its alignment"] = alignment(model, source, [5, 6])
        assert steps
    queries = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    results["JAX, jitted"] = np.asarray(jax.jit(lambda q: plain(q, q, q, Spec()))(queries))
    results["weights"] = headway.attention_weights(queries, queries)
    with headway.trace(only="weights", rows=slice(0, 2)) as steps:
        headway.attend(*(torch.from_numpy(queries),) * 3)
    results["rows of a fast kernel"] = steps["weights"].numpy()
    return results


def test_a_doubled_scale_changes_every_result(plant):
    before = everything()
    assert all(np.array_equal(before[k], v) for k, v in everything().items()), "not repeatable"
    plant()
    after = everything()
    unchanged = {name for name in before if np.allclose(before[name], after[name], atol=1e-9)}
    # These three contain their own lines for teaching; they are tested against the reference.
    assert unchanged == {"ladder fixed", "ladder simplified", "ladder trainable"}
