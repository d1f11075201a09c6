"""Folders that are damaged, incomplete or not supported: one line that says what is wrong."""

import json
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import headway
from families import VARIANTS, their_model
from headway.data.tokenizers import Tokenizer
from headway.hf import configs
from headway.hf.stored import StoredModel, find
from headway.models.gpt import unequal

LLAMA = VARIANTS["llama"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with several shards, an index and a tokenizer."""
    path = tmp_path_factory.mktemp("original")
    their_model(*LLAMA).save_pretrained(path, max_shard_size="10KB")
    assert len([*path.glob("model-*.safetensors")]) > 1
    Tokenizer.characters("".join(map(chr, range(65, 106)))).save(path / "tokenizer.json")
    headway.load(path)
    return path


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the folder, to damage."""
    return Path(shutil.copytree(original, tmp_path / "folder"))


def shard(folder, number=0):
    return sorted(folder.glob("model-*.safetensors"))[number]


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def rewrite(folder, edit, number=0):
    """Change the tensors of a shard."""
    tensors = load_file(shard(folder, number))
    edit(tensors)
    save_file(tensors, shard(folder, number))


def first(tensors):
    return next(iter(tensors))


def pickled(folder):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def outside(folder):
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={**names, first(names): "../other.safetensors"})


def header(size):
    def write(folder):
        shard(folder).write_bytes(struct.pack("<Q", size) + b"{" * 100)

    return write


def nan(tensors):
    tensors[first(tensors)].view(-1)[3] = float("nan")


def twice(folder):
    value = load_file(shard(folder))
    rewrite(folder, lambda tensors: tensors.update({first(value): value[first(value)]}), 1)


def cut(tensors):
    tensors[first(tensors)] = tensors[first(tensors)][:-1].contiguous()


def as_integers(tensors):
    tensors[first(tensors)] = tensors[first(tensors)].to(torch.int8)


def config(**values):
    return lambda folder: change(folder / "config.json", **values)


BAD = {
    "pickled weights": (pickled, "pytorch_model.bin, a format that can execute code"),
    "no weights": (lambda f: [file.unlink() for file in f.glob("model*")], "download the folder"),
    "missing shard": (lambda f: shard(f).unlink(), "has no model-00001-of"),
    "index outside": (outside, r"names the file '\.\./other\.safetensors'"),
    "index without map": (
        lambda f: change(f / "model.safetensors.index.json", weight_map=[1]),
        "must have a weight_map",
    ),
    "twice": (twice, "twice: in model-00001-of"),
    "missing tensor": (lambda f: rewrite(f, lambda t: t.pop(first(t))), "has no tensor model."),
    "other tensor": (
        lambda f: rewrite(f, lambda t: t.update(other=torch.ones(1))),
        "other is not a tensor of LlamaForCausalLM",
    ),
    "shape": (lambda f: rewrite(f, cut), "has the shape .* but config.json gives"),
    "type": (lambda f: rewrite(f, as_integers), "has the type I8; supported: F64"),
    "nan": (lambda f: rewrite(f, nan), "contains NaN or infinite numbers"),
    "100 MB header": (header(10**8), "its header would have 100,000,000 bytes"),
    "broken header": (header(100), "is damaged: "),
    "empty file": (lambda f: shard(f).write_bytes(b""), "is damaged: "),
    "config": (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
    "config list": (lambda f: (f / "config.json").write_text("[]"), "must contain a JSON object"),
    "no family": (
        lambda f: (f / "config.json").write_text('{"hidden_size": 4}'),
        "has no model_type",
    ),
    "family": (config(model_type="mamba"), "model_type 'mamba' is not supported; supported: gpt2"),
    "remote code": (config(auto_map={"AutoModel": "m.M"}), "asks to run the code of its folder"),
    "quantized": (config(quantization_config={"bits": 4}), "quantized weights"),
    "unknown key": (config(residual_multiplier=2.0), "the key 'residual_multiplier'"),
    "window in llama": (config(sliding_window=5), "the key 'sliding_window'"),
    "activation": (config(hidden_act="mish"), "hidden_act 'mish' is not supported"),
    "a word as size": (config(hidden_size="big"), "hidden_size must be an integer >= 0"),
    "a size as flag": (config(mlp_bias=3), "mlp_bias must be true or false"),
    "rope type": (config(rope_parameters={"rope_type": "longrope"}), "rope_type 'longrope'"),
    "rope key": (
        config(rope_parameters={"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}),
        "rope parameters: the key 'mrope_section'",
    ),
    "partial rotary": (
        config(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        "partial_rotary_factor 0.5 is not supported",
    ),
    "layers": (config(num_hidden_layers=10**12), "num_hidden_layers must be from 1 to 10,000"),
    "no heads": (config(num_attention_heads=0), r"config\.json is damaged: "),
    "rope as text": (config(rope_parameters="yarn"), r"config\.json is damaged: "),
    "rope factor as text": (
        config(rope_parameters={"rope_type": "llama3", "factor": "8", "low_freq_factor": 1.0}),
        "must be a number|is damaged: ",
    ),
    "layers as a list": (config(num_hidden_layers=[2]), "num_hidden_layers must be an integer"),
    "heads": (config(num_key_value_heads=3), "kv_heads must divide heads"),
    "tokenizer": (
        lambda f: Tokenizer.utf8_bytes().save(f / "tokenizer.json"),
        "has 256 tokens, but the model knows only 41",
    ),
    "broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "not a valid tokenizer",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD)
def test_a_bad_folder_is_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        headway.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention True"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (
            "qwen2",
            {"use_sliding_window": True, "num_hidden_layers": 3, "max_window_layers": 1},
            "a sliding window in some layers only",
        ),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2},
            "in some layers only",
        ),
        (
            "qwen3",
            {"layer_types": ["linear_attention"], "num_hidden_layers": 1},
            "layer_types must be 1 of",
        ),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types must be 32 of"),
        ("mistral", {"max_window_layers": 3}, "the key 'max_window_layers'"),
        ("qwen2", {"attention_bias": True}, "the key 'attention_bias'"),
        ("qwen3", {"mlp_bias": True}, "the key 'mlp_bias'"),
        ("llama", {"attention_bias": "yes"}, "attention_bias must be true or false"),
    ],
)
def test_a_key_that_changes_the_numbers_is_named(kind, keys, message):
    with pytest.raises(ValueError, match=message):
        configs.read({"model_type": kind, **keys})


def test_keys_of_training_and_generation_are_ignored():
    values = {"temperature": 0.6, "_name_or_path": "x", "num_beams": 3, "pretraining_tp": 2}
    values |= {"use_bfloat16": False, "pruned_heads": {}, "attention_dropout": 0.5}
    _, config = configs.read({"model_type": "llama", **values})
    assert config.dropout == 0.5
    assert not unequal(config, configs.read({"model_type": "llama", "attention_dropout": 0.5})[1])


def test_null_and_the_windows():
    def window(kind, **values):
        return configs.read({"model_type": kind, **values})[1].attention.window

    assert window("mistral") == 4096
    assert window("mistral", sliding_window=None) is None
    assert window("qwen2", use_sliding_window=None) is None
    assert window("qwen2", use_sliding_window=True, max_window_layers=0) == 4096
    types = ["sliding_attention"] * 32
    assert window("qwen3", use_sliding_window=True, layer_types=types, sliding_window=9) == 9


def test_old_and_new_keys_of_rotary_positions():
    scaling = {"type": "linear", "factor": 3.0}
    _, old = configs.read({"model_type": "llama", "rope_theta": 7.0, "rope_scaling": scaling})
    new = {"rope_type": "linear", "factor": 3.0, "rope_theta": 7.0}
    assert old == configs.read({"model_type": "llama", "rope_parameters": new})[1]
    assert (old.positions.rotary.theta, old.context) == (7.0, 3 * 2048)


def test_the_defaults_of_every_family_are_those_of_transformers():
    for kind, family in configs.FAMILIES.items():
        theirs = transformers.AutoConfig.for_model(kind)
        for name, value in family.defaults.items():
            their_value = getattr(theirs, name)
            if name == "sliding_window" and not family.defaults.get("use_sliding_window", True):
                continue  # transformers sets it to None
            assert their_value == value, (kind, name)


def test_old_names_of_tensors(tmp_path):
    for name in ("gpt2", "bert"):
        theirs = their_model(*VARIANTS[name])
        theirs.save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        tokens = torch.arange(12).reshape(2, 6)
        expected = headway.load(tmp_path / name, device="cpu").model(tokens)
        prefix = {"gpt2": "transformer.", "bert": "never"}[name]
        tensors = {key.removeprefix(prefix): value for key, value in load_file(file).items()}
        if name == "gpt2":  # openai-community/gpt2 has no prefix, but the causal masks
            tensors |= {f"h.{n}.attn.bias": torch.ones(1, 1, 48, 48) for n in range(2)}
        else:
            tensors = {
                k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in tensors.items()
            }
            tensors = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in tensors.items()}
            tensors["bert.pooler.dense.weight"] = torch.ones(3)
        save_file(tensors, file)
        assert torch.equal(headway.load(tmp_path / name, device="cpu").model(tokens), expected)


def test_the_type_of_the_config_or_another(folder):
    assert headway.load(folder).model.embedding.weight.dtype == torch.float32
    rewrite(folder, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    change(folder / "config.json", dtype="float16", torch_dtype="float32")
    assert {p.dtype for p in headway.load(folder).model.parameters()} == {torch.float16}
    change(folder / "config.json", dtype=None, torch_dtype="torch.float64")
    assert {p.dtype for p in headway.load(folder).model.parameters()} == {torch.float64}
    change(folder / "config.json", dtype=None, torch_dtype=None)  # that of the embedding
    assert {p.dtype for p in headway.load(folder).model.parameters()} == {torch.bfloat16}
    for name in ("torch", "jax"):
        model = headway.load(folder, name, dtype="float64").model
        logits = model(torch.tensor([[3, 4]]) if name == "torch" else np.array([[3, 4]]))
        assert str(logits.dtype).endswith("float64")


def test_float64_needs_64_bits_in_jax(folder, monkeypatch):
    monkeypatch.setattr(type(jax.config), "read", lambda self, name: False)
    with pytest.raises(ValueError, match="needs the environment variable JAX_ENABLE_X64=1"):
        headway.load(folder, "jax", dtype="float64")


def test_a_second_copy_of_a_tied_matrix(tmp_path):
    kind, keys = VARIANTS["llama grouped, wide heads, theta, eps, tied"]
    their_model(kind, keys).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": head}, file)
    headway.load(tmp_path)
    head[1, 2] += 1
    save_file({**tensors, "lm_head.weight": head}, file)
    for name in ("torch", "jax"):
        with pytest.raises(ValueError, match="although tie_word_embeddings is true; set it"):
            headway.load(tmp_path, name)
    change(tmp_path / "config.json", tie_word_embeddings=False)
    assert headway.load(tmp_path, device="cpu").model.head.weight[1, 2] == head[1, 2]


def test_special_tokens_that_the_model_does_not_have(folder):
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", bos_token_id=999)
    assert headway.load(folder).tokenizer.bos is None
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    with pytest.raises(ValueError, match=r"special tokens \[999\] are not among the 41 tokens"):
        headway.load(folder)
    (folder / "tokenizer_config.json").write_text('{"bos_token": 3}')
    with pytest.raises(ValueError, match=r"the special tokens of .* are invalid"):
        headway.load(folder)


def test_a_folder_with_a_space_in_its_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.rename("my model")
    assert find("my model", "runs").name == "my model"
    with pytest.raises(ValueError, match="invalid run name 'your model'"):
        find("your model", "runs")


def test_a_folder_without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert headway.load(folder).tokenizer is None
    with pytest.raises(ValueError, match=r"has no tokenizer\.json; write it with"):
        StoredModel.open(folder).tokenizer  # noqa: B018 - raises


def test_a_name_is_looked_up_in_the_local_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="download it with `hf download some/model`"):
        headway.load("some/model")
    model = tmp_path / "models--some--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    (model / "snapshots").mkdir()
    folder.rename(model / "snapshots" / "abc")
    assert headway.load("some/model").config.vocabulary == 41
    assert find("some/model", "runs").name == "some/model"


def test_a_run_goes_before_a_folder_of_its_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("folder", "runs").folder is not None
    sizes = {"context": 8, "width": 8, "layers": 1, "heads": 1, "steps": 1, "batch": 1}
    (tmp_path / "text.txt").write_text("a b c " * 20)
    headway.train("text.txt", name="folder", **sizes, tokenizer="char", compile=False)
    with pytest.warns(UserWarning, match=r"is the run runs.folder; .* use \./folder"):
        assert find("folder", "runs").run is not None
    assert find("./folder", "runs").folder is not None
