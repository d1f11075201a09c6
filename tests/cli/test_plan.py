"""`headway plan`: what a user sees."""

import json
import re
from pathlib import Path

import pytest

from command import headway

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scale.md"
COMMAND = re.compile(r"^```\n\$ headway (plan [^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def output(*words):
    printed = headway(ROOT, "plan", *words).stdout
    return "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


def written():
    """The page with the output of each command after it."""

    def block(found):
        return f"```\n$ headway {found[1]}\n{output(*found[1].split()[1:])}```"

    return COMMAND.sub(block, PAGE.read_text())


def test_the_page_shows_what_the_commands_print():
    """To write the outputs again: `PYTHONPATH=tests python -m cli.test_plan`."""
    assert len(COMMAND.findall(PAGE.read_text())) >= 3
    assert written() == PAGE.read_text()


def test_a_plan_fits_in_80_columns_and_names_every_part():
    text = output("gpt2-small", "--gpus", "8")
    assert max(map(len, text.splitlines())) <= 80
    for word in ("weights", "gradients", "optimizer", "activations", "logits", "matrix products"):
        assert word in text
    for word in ("attention", "exposed", "tokens/s", "MFU", "take", "limit", "inputs"):
        assert word in text
    assert "8 x NVIDIA H100 SXM 80 GB" in text


def test_what_does_not_fit_is_said_with_what_to_do():
    text = output("examples/llama-8b.toml", "--gpus", "8", "--card", "a100-40gb")
    assert "does not fit" in text
    assert "--activation-checkpointing" in text or "sharded over" in text


def test_attention_that_is_not_modelled_is_noted():
    assert "no FlashAttention" in output("gpt2-small", "--positions.kind", "relative")
    assert "no FlashAttention" in output("gpt2-small", "--normalizer", "sparsemax")
    assert "dropout takes longer" in output("gpt2-small", "--dropout", "0.1")
    assert "note" not in output("gpt2-small")


def test_json():
    words = ("gpt2-small", "--gpus", "64", "--card", "h200", "--batch", "1024")
    data = json.loads(headway(ROOT, "plan", *words, "--json").stdout)
    assert data["gpus"] == 64
    assert data["windows_per_gpu"] == 16
    assert data["parameters"]["total"] == 124_439_808
    assert data["fits"]
    slow = json.loads(headway(ROOT, "plan", *words, "--json", "--network", "0.1").stdout)
    assert slow["seconds"]["exposed"] > data["seconds"]["exposed"]


def test_measure_on_this_machine():
    done = headway(ROOT, "plan", "char-cpu", "--measure", "--device", "cpu")
    assert "measured on this machine" in done.stdout
    assert "the vocabulary of 65 is assumed" in done.stdout
    assert "1 x cpu" in done.stdout
    assert "measuring one block" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--card", "h10"], "unknown card 'h10'; did you mean 'h100'?"),
        (["--gpus", "12"], "gpus must be a multiple of per-node, or at most per-node"),
        (["--gpus", "1024"], "batch must be at least the number of GPUs"),
        (["--gpus", "3"], "batch must be a multiple of gpus"),
        (["--network", "0"], "network must be above 0"),
        (["--card", "a100", "--measure"], "--measure uses this machine's device; remove --card"),
        (["--device", "cpu"], "--device is for --measure"),
        (["finetune"], "the recipe has no [model]"),
        (["smal"], "unknown recipe 'smal'"),
    ],
)
def test_mistakes_are_one_line(words, message):
    done = headway(ROOT, "plan", *words, rc=1)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


if __name__ == "__main__":
    import os

    os.environ["COLUMNS"] = "80"
    PAGE.write_text(written())
