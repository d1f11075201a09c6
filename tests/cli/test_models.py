"""Every command that takes a run takes a Hugging Face folder, as a new user would."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers

from command import run
from families import VARIANTS, their_model
from headway.data.tokenizers import Tokenizer
from headway.explore import trace_file

# On one worker, because the tests share a fixture that takes seconds.
pytestmark = pytest.mark.xdist_group("folders")

TEXT = "The cat sat on the mat, and the dog sat on the cat.\n" * 40
SHORT = ["--length", "8", "--batch", "2", "--save-every", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, a folder that transformers saved, and a run that started from it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text(TEXT)
    for name, variant in {"llama": "llama", "bert": "bert"}.items():
        their_model(*VARIANTS[variant]).save_pretrained(folder / name)
        letters = Tokenizer.characters("".join(sorted({*TEXT})) + "?")
        letters.save(folder / name / "tokenizer.json")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "?"}
    (folder / "bert" / "tokenizer_config.json").write_text(json.dumps(names))
    done = run(
        folder, "train", "text.txt", "--from", "llama", "--name", "further", "--steps", "2", *SHORT
    )
    assert done.returncode == 0, done.stderr
    assert re.search("adamw on cpu, (float32|bfloat16)", done.stdout)
    return folder


def good(place, *words):
    done = run(place, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_generate(place, engine):
    options = ["--engine", engine, "--tokens", "9", "--temperature", "0", "--device", "cpu"]
    assert good(place, "generate", "./llama", "The", *options).startswith("The")
    one = good(place, "generate", "llama", "The", *options, "--dtype", "float64")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place / "llama")
    tokenizer = Tokenizer.load(place / "llama" / "tokenizer.json")
    tokens = torch.tensor(tokenizer.prompt("The")[None])
    written = theirs.generate(tokens, max_new_tokens=9, do_sample=False)[0]
    eos = theirs.config.eos_token_id
    assert one.rstrip("\n") == tokenizer.decode([t for t in written.tolist() if t != eos]).rstrip(
        "\n"
    )


def test_masked_words(place):
    options = ["--dtype", "float64"]
    first, *rest = good(place, "generate", "bert", "The ?at sa?", *options).splitlines()
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(place / "bert").double()
    tokenizer = Tokenizer.load(place / "bert" / "tokenizer.json")
    tokens = tokenizer.with_special_tokens("The ?at sa?")
    with torch.no_grad():
        shares = theirs(torch.tensor(tokens[None])).logits[0].softmax(-1).numpy()
    (places,) = np.nonzero(tokens == tokenizer.mask)
    best = [int(shares[at].argmax()) for at in places]
    words = [tokenizer.decode([token]) for token in best]  # "" for a token without a name
    assert first == f"The {words[0]}at sa{words[1]}"
    assert rest[0].startswith(f"? 1: {tokenizer.name(best[0])} {shares[places[0]].max():.1%}, ")
    done = run(place, "generate", "bert", "The cat")
    assert done.returncode == 1
    assert "write ? in the prompt for each of them" in done.stderr


def test_trace_and_explore(place):
    for name in ("llama", "bert", "further"):
        good(place, "trace", name, "The cat", "-o", "t.safetensors", "--dtype", "bfloat16")
        tensors, manifest = trace_file.load(place / "t.safetensors")
        assert tensors["blocks.1.attention.weights"].shape == (1, 4, 7, 7)
        later = np.triu(tensors["blocks.1.attention.weights"][0, 0], 1)
        assert (later == 0).all() == (name != "bert")
        good(place, "explore", name, "The cat", "--html", "page.html")
        assert (manifest["step"], manifest["validation"] is None) == (
            (2, False) if name == "further" else (None, True)
        )
    done = run(place, "explore", "bert", "--html", "page.html")
    assert "give a text" in done.stderr


def test_check_and_info(place):
    for name in ("llama", "bert", "further"):
        assert "fail" not in good(place, "check", name, "--only", "future,present,runs")
    facts = good(place, "info", "llama")
    assert "LlamaForCausalLM, 9,576 parameters in 1 file" in facts
    assert "positions.rotary.theta" in facts
    assert "pretrained" in good(place, "info", "further")


def test_eval(place):
    for engine in ("torch", "jax"):
        options = ["--engine", engine, "--context", "12", "--stride", "7", "--dtype", "float64"]
        first, second = good(place, "eval", "llama", "text.txt", *options).splitlines()
        assert first.endswith("bits per byte")
        assert second.endswith("window of 12 tokens, stride 7")
        numbers = [word for word in first.split() if word.replace(".", "").isdigit()]
        if engine == "torch":
            expected = numbers
    assert numbers == expected
    for words, message in (
        (["bert", "text.txt"], "predicts masked words, not the next one"),
        (["llama", "text.txt", "--context", "65"], "--context must be from 1 to 64"),
    ):
        done = run(place, "eval", *words)
        assert done.returncode == 1
        assert message in done.stderr


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_training_from_a_folder_is_resumed_bit_for_bit(place, engine):
    start = ["train", "text.txt", "--from", "llama", "--engine", engine, *SHORT, "--steps", "4"]
    good(place, *start, "--dropout", "0.1", "--name", f"once-{engine}")
    once, again = (place / "runs" / f"{name}-{engine}" for name in ("once", "again"))
    shutil.copytree(once, again)
    shutil.rmtree(again / "checkpoints" / "step-000004")
    good(place, "train", "--resume", again.name)
    files = [run / "checkpoints" / "step-000004" / "SHA256SUMS" for run in (once, again)]
    assert files[0].read_text() == files[1].read_text()
    losses = [json.loads(line)["loss"] for line in (again / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(losses[1], rel=0.3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "llama", "--width", "8"], "remove the setting model.width, or --from"),
        (["--from", "llama", "--tokenizer", "bpe"], "remove the setting tokenizer, or --from"),
        (["--from", "llama", "--recipe", "small"], "remove the setting tokenizer"),
        (["--from", "bert"], "predicts masked words; only multi-head GPTs"),
        (["--from", "llama", "--length", "65"], "length must be at most the context of the model"),
        (["--from", "nowhere"], "run 'nowhere' not found in runs; available runs: "),
        (["--from", "some/model"], "download it with `hf download some/model`"),
        (["--resume", "further", "--from", "llama"], "remove --name, --recipe and --from"),
    ],
)
def test_mistakes(place, words, message):
    done = run(place, "train", "text.txt", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_killed_before_its_first_checkpoint(place):
    good(place, "train", "text.txt", "--from", "llama", "--name", "killed", "--steps", "2", *SHORT)
    for checkpoint in (place / "runs" / "killed" / "checkpoints").iterdir():
        checkpoint.rename(place / checkpoint.name)
    done = run(place, "train", "--resume", "killed")
    assert "stopped before its first checkpoint" in done.stderr


def test_export(place):
    out = good(place, "export", "further", "out")
    assert "out: LlamaForCausalLM" in out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place / "out")
    assert theirs.config.hidden_size == 24
    one, two = (good(place, "eval", n, "text.txt").splitlines()[0] for n in ("further", "out"))
    assert one == two
    done = run(place, "export", "further", "out")
    assert "out exists and is not empty" in done.stderr
