"""Models as Hugging Face folders: transformers computes the same, and we read back the same."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import headway
from families import VARIANTS, their_model
from gpts import MODERN, config, lively
from headway.data.tokenizers import Tokenizer
from headway.engines import engine_named
from headway.hf import configs
from headway.hf.export import export
from headway.hf.stored import StoredModel, find
from headway.models.gpt import PRESETS, preset, unequal
from headway.torch import weights
from headway.training import checkpoints, recipes, session

TEXT = "The cat sat on the mat, and the dog sat on the cat.\n" * 60
SIZES = {"context": 256, "width": 24, "layers": 2, "heads": 2, "steps": 1, "batch": 1}


def trained(folder, tokenizer="char", **settings):
    """A run with large random weights, so that its greedy text is not one repeated token."""
    (folder / "text.txt").write_text(TEXT)
    names = {"name": "run", "runs": str(folder), "tokenizer": tokenizer, "compile": False}
    run = headway.train(str(folder / "text.txt"), **names, **{**SIZES, **settings})
    (checkpoint,) = checkpoints.complete(run.checkpoints)[-1:]
    _, about = checkpoints.load(checkpoint)
    tensors = {k: v.astype(np.float32) for k, v in lively(run.config.gpt).items()}
    about["machine"] = {}
    checkpoints.save(run.checkpoints, 2, {"model": tensors, "optimizer": {}}, about)
    return run


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_transformers_writes_the_same_text(name, tokenizer, tmp_path):
    run = trained(tmp_path, tokenizer, preset=name, tied=False)
    stored = find("run", str(tmp_path))
    export(stored, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = "The cat"
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    assert tokens[0].tolist() == run.tokenizer.encode(prompt).tolist()
    model = stored.load(device="cpu")
    with torch.no_grad():
        expected, output = model(tokens), theirs(tokens).logits
    assert (output - expected).abs().max() < 1e-5 * expected.abs().max()
    written = theirs.generate(tokens, max_new_tokens=200, do_sample=False)[0, tokens.shape[1] :]
    ours = engine_named("torch").generate(model, [tokens[0].numpy()], tokens=200, temperature=0)
    assert [token for (token,) in ours] == written.tolist()
    assert len(set(written.tolist())) > 3
    assert tokenizer.decode(written) == run.tokenizer.decode(written.numpy())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_read_and_written_is_the_same(name, tmp_path):
    their_model(*VARIANTS[name]).save_pretrained(tmp_path / "first")
    Tokenizer.characters("abc").save(tmp_path / "first" / "tokenizer.json")
    first = StoredModel.open(tmp_path / "first")
    export(first, tmp_path / "second")
    second = StoredModel.open(tmp_path / "second")
    assert unequal(first.gpt, second.gpt) == []
    one, two = (weights.to_arrays(stored.load(device="cpu")) for stored in (first, second))
    assert one.keys() == two.keys()
    assert all(one[key].tobytes() == two[key].tobytes() for key in one)
    ids = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("first", "second")]
    assert ids[0]["eos_token_id"] == ids[1]["eos_token_id"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_an_architecture(name):
    sizes = {"vocabulary": 9, "context": 8, "width": 16, "layers": 1, "attention": {"heads": 2}}
    family, _ = configs.write(preset(name, sizes))
    assert family.architecture == {"gpt2": "GPT2LMHeadModel", "modern": "Qwen3ForCausalLM"}[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "alibi"}, "nearest is gpt2, which differs in positions.kind"),
        ({"normalizer": "sparsemax"}, "gpt2, which differs in attention.normalizer"),
        ({"causal": False}, "gpt2, which differs in attention.causal"),
        ({"kv_heads": 2}, "gpt2, which differs in attention.kv_heads"),
        ({"scale": 0.3}, "gpt2, which differs in attention.scale"),
        (
            {**MODERN, "mlp": "relu2"},
            "nearest is llama: config.json: hidden_act 'relu2' is not supported",
        ),
    ],
)
def test_models_without_architecture_name_what_differs(changes, message):
    with pytest.raises(ValueError, match=message):
        configs.write(config(**changes))


def test_biases_and_windows_that_no_family_has_together():
    changes = {"mlp": "swiglu", "positions": "rotary", "norm": "rms"}
    plain = config(**changes)
    attention = replace(plain.attention, window=5)
    for fields, expected in (
        ({}, "MistralForCausalLM"),
        ({"qkv_bias": True}, "Qwen2ForCausalLM"),
        ({"qk_norm": True}, "Qwen3ForCausalLM"),
        ({"qkv_bias": True, "output_bias": True}, None),
    ):
        model = replace(plain, attention=replace(attention, **fields))
        if expected is None:
            with pytest.raises(ValueError, match=r"qwen3, which differs in .*qk_norm$"):
                configs.write(model)
        else:
            assert configs.write(model)[0].architecture == expected


def test_bad_exports(tmp_path):
    run = headway.train(
        _text(tmp_path), name="rung", runs=str(tmp_path), rung="multihead", compile=False, **SIZES
    )
    with pytest.raises(ValueError, match="has the rung 'multihead' as its attention"):
        export(find("rung", str(tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="exists and is not empty; give another folder"):
        export(find("rung", str(tmp_path)), run.path)


def _text(folder):
    file = Path(folder) / "text.txt"
    file.write_text(TEXT)
    return str(file)


def test_special_tokens_survive_training_and_export(tmp_path):
    their_model(*VARIANTS["llama"]).save_pretrained(tmp_path / "folder")
    Tokenizer.characters("".join(sorted(set(TEXT)))).save(tmp_path / "folder" / "tokenizer.json")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "T", "add_bos_token": True}
    names["auto_map"] = {"AutoTokenizer": ["code.py", None]}  # an export never asks to run code
    (tmp_path / "folder" / "tokenizer_config.json").write_text(json.dumps(names))
    given = StoredModel.open(tmp_path / "folder")
    assert given.tokenizer.bos is not None
    assert given.tokenizer.eos == {2}  # Llama's config.json
    settings = recipes.override(
        recipes.read("finetune"),
        {"text": _text(tmp_path), "steps": 2, "length": 8, "batch": 2, "dropout": 0.0},
    )
    plan = recipes.plan(settings, given.pretrained())
    started = session.begin(tmp_path / "run", plan, engine_named("torch"), "cpu")
    before = weights.to_arrays(given.load(device="cpu"))
    assert all((before[k] == v).all() for k, v in started.trainer.state()["model"].items())
    started.fit()
    run = StoredModel.open(tmp_path / "run")
    assert run.run.config.pretrained == str(tmp_path / "folder")
    export(run, tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    for stored in (run, StoredModel.open(tmp_path / "out")):
        tokenizer = stored.tokenizer
        assert (tokenizer.bos, tokenizer.eos) == (given.tokenizer.bos, given.tokenizer.eos)
        assert tokenizer.prompt("cat").tolist() == given.tokenizer.prompt("cat").tolist()
