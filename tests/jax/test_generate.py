"""Generation in JAX: the same tokens as in PyTorch, one compiled step, batches of prompts."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import headway
from gpts import PRESETS, config, lively
from headway.jax import generate as module
from headway.jax.generate import generate
from headway.jax.gpt import Model
from headway.jax.layers import multi_head, of_rung
from headway.ladder.rungs import LADDER
from headway.models.sampling import Sampling, sampled
from headway.torch import GPT, weights
from headway.torch import gpt as torch_gpt
from headway.torch.generate import generate as torch_generate

PROMPTS = [np.array(p) for p in ([3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [2, 7])]
MODELS = {
    "gpt2": ({}, None),
    "relative": (PRESETS["relative"], None),
    "alibi": (PRESETS["alibi"], None),
    "no mask": ({"causal": False}, None),
    "rung fixed": ({}, LADDER["fixed"]),
    "rung stacked": ({}, LADDER["stacked"]),
}


def model(name):
    changes, rung = MODELS[name]
    of, attention = config(**changes), multi_head if rung is None else of_rung(rung)
    params = {n: jnp.asarray(a) for n, a in lively(of, attention.shapes(of)).items()}
    return Model(params, of, attention)


@pytest.mark.parametrize("name", MODELS)
def test_both_engines_generate_the_same_tokens(name):
    """Also beyond the context, which the prompts reach at different steps."""
    ours, rung = model(name), MODELS[name][1]
    theirs = GPT(ours.config, torch_gpt.multi_head if rung is None else torch_gpt.of_rung(rung))
    theirs = theirs.double()
    weights.fill(theirs, {n: np.array(p) for n, p in ours.params.items()})
    options = {"tokens": 30, "temperature": 1.3, "top_p": 0.95, "seed": 3}
    with torch.no_grad():
        expected = [*torch_generate(theirs, PROMPTS, **options)]
    assert [*generate(ours, PROMPTS, **options)] == expected
    assert len({token for step in expected for token in step}) > 5


def test_a_trace_has_no_padding_and_an_edit_changes_the_tokens():
    ours = model("gpt2")
    usual = [*generate(ours, PROMPTS[:1], tokens=2, temperature=0.0)]
    with headway.trace("blocks.0.attention.weights") as steps:
        assert [*generate(ours, PROMPTS[:1], tokens=2, temperature=0.0)] == usual
    shapes = [weights.shape[-2:] for weights in steps["blocks.0.attention.weights"]]
    assert shapes == [(5, 5), (6, 6)]
    steps = generate(ours, PROMPTS[:1], tokens=2, temperature=0.0)
    with headway.edit({"blocks.*.attention.context": lambda context: context * 0}):
        assert [*steps] != usual


def test_one_compiled_step_generates_all_tokens():
    ours = model("gpt2")
    module._decode.clear_cache()
    module._prefill.clear_cache()
    for count, prompt in enumerate(PROMPTS[:1] * 3):
        for _ in generate(ours, [prompt], tokens=5 - count):
            pass
    assert module._decode._cache_size() == 1
    assert module._prefill._cache_size() == 1


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 5}, {"top_p": 0.9}], ids=str)
def test_numpy_on_a_cpu_and_the_compiled_function_sample_the_same(options, monkeypatch):
    logits = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32) * 3
    arguments = np.arange(4, dtype=np.int32), np.int32(7)
    how = Sampling(seed=3, **options)
    compiled, _ = module._sampled(jnp.asarray(logits), *arguments, sampling=how, candidates=256)
    expected, _ = sampled(logits, *arguments, how)
    assert compiled.tolist() == expected.tolist()
    monkeypatch.setattr(module, "_sampled", None)  # not called on a CPU
    assert len([*generate(model("gpt2"), PROMPTS, tokens=2, **options)]) == 2


TWICE = """
import jax, numpy, gpts
from headway.engines import engine_named
from headway.jax.gpt import Model, init
engine, hits = engine_named("jax"), []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
config = gpts.gpt_config(27, 16, 16, 12, 4)
for _ in engine.generate(Model(init(config, 0), config), [numpy.arange(3)], tokens=3): pass
print(sum(hits))
"""


@pytest.mark.slow
def test_compiled_programs_are_kept_between_processes(tmp_path):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    variables |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    hits = [
        int(subprocess.check_output([sys.executable, "-c", TWICE], env=variables, text=True))
        for _ in range(2)
    ]
    assert hits == [0, 2]  # the prompt, and one token


def test_tokens_are_generated_lazily_and_an_empty_prompt_raises():
    steps = generate(model("gpt2"), PROMPTS[:2], tokens=10**9)
    assert [len(next(steps)) for _ in range(3)] == [2, 2, 2]
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(generate(model("gpt2"), [np.array([], int)], tokens=1))
