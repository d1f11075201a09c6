"""Real weights: the models of the folder HEADWAY_MODELS do what their authors say."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import headway
from headway.engines import engine_named

MODELS = Path(os.environ.get("HEADWAY_MODELS", "nowhere"))
pytestmark = pytest.mark.slow
real = pytest.mark.skipif(not MODELS.is_dir(), reason="HEADWAY_MODELS names no folder of models")


def expected(name):
    numbers = load_file(MODELS / name / "expected.safetensors")
    return numbers, json.loads((MODELS / name / "expected.json").read_text())


def logits(engine, model, tokens):
    output = engine_named(engine).logits(model, np.asarray(tokens, np.int64))
    return np.asarray(output.double() if engine == "torch" else output)


@real
@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_stories260k_writes_its_story(engine):
    model, tokenizer, _ = headway.load(MODELS / "stories260K", engine)
    numbers, story = expected("stories260K")
    output = logits(engine, model, numbers["input_ids"][None])[0]
    assert abs(output - numbers["logits"]).max() < 1e-5 * abs(numbers["logits"]).max()
    start = np.array([tokenizer.bos])
    steps = engine_named(engine).generate(model, [start], tokens=255, temperature=0)
    written = [token for (token,) in steps]
    assert [tokenizer.bos, *written] == numbers["greedy_ids"].tolist()
    assert tokenizer.decode(written).strip() == story["greedy_from_bos_255_tokens"]


@real
@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_gpt_nano_sort_sorts_everything(engine):
    model, _, _ = headway.load(MODELS / "gpt-nano-sort", engine)
    letters = np.array([*product(range(3), repeat=6)])
    written = [*engine_named(engine).generate(model, [*letters], tokens=6, temperature=0)]
    assert (np.sort(letters) == np.array(written).T).all()


@real
def test_the_steps_of_gpt_nano_sort_are_the_published_ones():
    model, _, _ = headway.load(MODELS / "gpt-nano-sort", dtype="float64", device="cpu")
    theirs = load_file(MODELS / "gpt-nano-sort" / "activations.safetensors")
    with torch.no_grad(), headway.trace() as steps:
        model(torch.tensor(theirs["idx"]))
    attention = "blocks.0.attention."
    names = {
        "x": "embedded",
        "ln1": "blocks.0.attention_norm",
        "q": attention + "queries",
        "k": attention + "keys",
        "v": attention + "values",
        "att": attention + "masked",
        "attSm": attention + "weights",
        "yProj": attention + "output",
        "attnResid": "blocks.0.after_attention",
        "ln2": "blocks.0.mlp_norm",
        "gelu": "blocks.0.mlp.hidden",
        "mlp": "blocks.0.mlp.output",
        "mlpResid": "blocks.0.after_mlp",
        "block0": "blocks.0.after_mlp",
        "block1": "blocks.1.after_mlp",
        "block2": "blocks.2.after_mlp",
        "ln_f": "final_norm",
        "lm_head": "logits",
    }
    for their_name, name in names.items():
        np.testing.assert_allclose(
            steps[name].numpy(), theirs[their_name], rtol=1e-5, atol=2e-5, err_msg=name
        )


@real
@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_rxn_bert_fills_in_181_of_195_tokens(engine):
    model, tokenizer, _ = headway.load(MODELS / "rxn-bert", engine, dtype="float64")
    numbers, words = expected("rxn-bert")
    output = logits(engine, model, numbers["input_ids"])
    assert abs(output - numbers["prediction_logits"]).max() < 1e-10
    recovered = []
    for reaction in words["each_token_masked_in_turn"]:
        tokens = tokenizer.with_special_tokens(reaction["reaction"])
        inside = np.arange(1, len(tokens) - 1)
        rows = np.tile(tokens, (len(inside), 1))
        rows[np.arange(len(inside)), inside] = tokenizer.mask
        best = logits(engine, model, rows).argmax(-1)[np.arange(len(inside)), inside]
        recovered.append(int((best == tokens[inside]).sum()))
        assert (len(inside), recovered[-1]) == (reaction["tokens"], reaction["recovered"])
    assert sum(recovered) == 181


LOADS = """
import resource, sys
import torch, headway, headway.hf.stored
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
from headway.engines import engine_named
engine_named(sys.argv[2])
before = peak()
model = headway.load(sys.argv[1], sys.argv[2], device="cpu").model
print(peak() - before)
"""


@pytest.mark.parametrize("case", ["llama torch", "llama jax", "gpt2 torch"])
def test_loading_needs_the_memory_of_the_files_and_one_shard(case, tmp_path):
    """A folder of 1 GB in bfloat16."""
    kind, engine = case.split()
    width, layers = 2048, 8
    keys = {
        "llama": {"hidden_size": width, "intermediate_size": 6144, "num_hidden_layers": layers},
        "gpt2": {"n_embd": width, "n_layer": layers + 1, "n_head": 16},
    }[kind]
    config = transformers.AutoConfig.for_model(kind, vocab_size=20_000, **keys)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    model.save_pretrained(tmp_path, max_shard_size="250MB")
    del model
    sizes = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
    assert sum(sizes) > 0.9e9
    assert len(sizes) > 3
    process = subprocess.run(
        [sys.executable, "-c", LOADS, str(tmp_path), engine], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) < sum(sizes) + max(sizes)
