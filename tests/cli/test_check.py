"""`headway check`: its output, its files, its exit status and its error messages."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command import run
from headway.check import CHECKS

HEADWAY = str(Path(sys.executable).parent / "headway")

# A module with an optional leak (`ahead`), functions, and an object that is neither.
CODE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, d_model, n_heads, ahead=0):
        super().__init__()
        self.n_heads, self.ahead = n_heads, ahead
        self.qkv = nn.Linear(d_model, 3 * d_model)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        scores = q @ k.mT / k.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:]).triu(1 + self.ahead).bool()
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

def attend(q, k, v, *, causal=False, factor=1.0):
    scores = factor * q @ k.mT / k.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ v

def two(x, y):
    return x

def hidden(x):
    return x @ x.mT

def exits(q, k, v):
    raise SystemExit(0)

def prints(q, k, v):
    print("attending")
    return attend(q, k, v)

plain = 3
"""
SIZES = ["--set", "d_model=16", "--set", "n_heads=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    (folder / "mine.py").write_text(CODE)
    (folder / "broken.py").write_text("import no_such_library\n")
    return folder


def check(*arguments, cwd):
    return run(cwd, "check", *arguments)


def test_a_correct_module_passes(folder):
    result = check("mine:Mine", "--kind", "self", "--causal", *SIZES, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "✓ future" in result.stdout
    assert "not applicable, for kind qkv: shifted" in result.stdout
    assert "mine:Mine (self, torch): 17 pass, 18 not applicable\n" in result.stdout


def test_a_leak_is_reported_with_its_source_line(folder):
    leak = ["mine.py:Mine", "--kind", "self", "--causal", *SIZES, "--set", "ahead=1"]
    result = check(*leak, "--html", "out.html", cwd=folder)
    assert result.returncode == 1
    assert "✗ cause: the causal mask is shifted by one" in result.stdout
    assert "mine.py:17: later = torch.ones" in result.stdout
    page = (folder / "out.html").read_text()
    assert "cause: the causal mask is shifted by one" in page
    assert "http" not in page
    assert len(page.split("<tr>")) == 1 + len(CHECKS)
    HTMLParser().feed(page)
    assert check(*leak, cwd=folder).stdout == result.stdout


def test_json_has_every_finding(folder):
    options = ["--kind", "qkv", "--features", "causal", "--set", "factor=2", "--json"]
    result = check("mine:attend", *options, cwd=folder)
    assert result.returncode == 1
    (diagnosis,) = json.loads(result.stdout)
    failed = [f for f in diagnosis["findings"] if f["verdict"] == "fail"]
    assert [f["check"] for f in failed] == ["formula", "scale"]
    assert all(f["proven"] and f["declare"].startswith("scale=0.7071") for f in failed)
    assert len(diagnosis["findings"]) == len(CHECKS)


def test_a_file_may_import_from_its_folder_and_have_any_name(folder):
    deeper = folder / "deeper"
    deeper.mkdir()
    (deeper / "factors.py").write_text("factor = 1.0\n")
    code = "from factors import factor\n" + CODE
    (deeper / "tokenize.py").write_text(code.replace("factor=1.0", "factor=factor"))
    result = check("deeper/tokenize.py:attend", "--kind", "qkv", cwd=folder)
    assert result.returncode == 0, result.stderr


def test_code_that_prints_or_exits(folder):
    result = check("mine:prints", "--kind", "qkv", "--json", cwd=folder)
    (diagnosis,) = json.loads(result.stdout)
    assert diagnosis["ok"]
    assert "lines are not shown" in diagnosis["notes"][0]
    assert "attending" not in result.stderr
    result = check("mine:exits", "--kind", "qkv", cwd=folder)
    assert result.returncode == 1
    assert "raised SystemExit" in result.stdout


def test_what_is_not_tested_is_said_and_fails_with_strict(folder):
    unknown = ["mine:hidden", "--width", "6", "--only", "runs,scale"]
    result = check(*unknown, cwd=folder)
    assert result.returncode == 0, result.stdout
    assert "mine:hidden (self, torch): 1 pass, NOT TESTED: scale\n" in result.stdout
    assert "note: the kind 'self' is taken from the signature" in result.stdout
    assert check(*unknown, "--strict", cwd=folder).returncode == 1
    assert check("mine:Mine", "--causal", *SIZES, "--strict", cwd=folder).returncode == 0


def test_an_error_is_shown_with_its_line(folder):
    result = check("mine:Mine", "--set", "d_model=16", "--set", "n_heads=3", cwd=folder)
    assert result.returncode == 1
    assert "RuntimeError" in result.stdout
    assert "raised at  mine.py:" in result.stdout
    assert "NOT TESTED: everything else" in result.stdout


def test_a_check_is_left_out(folder):
    options = ["mine:attend", "--kind", "qkv", "--set", "factor=2"]
    assert check(*options, "--skip", "formula,scale", cwd=folder).returncode == 0
    assert check(*options, "--scale", "0.70710678", cwd=folder).returncode == 0


def test_selected_checks(folder):
    result = check("mine:attend", "--kind", "qkv", "--only", "scale,order", "--json", cwd=folder)
    (diagnosis,) = json.loads(result.stdout)
    assert [f["check"] for f in diagnosis["findings"]] == ["scale", "order"]
    assert result.returncode == 0


def test_a_run(folder):
    (folder / "text.txt").write_text("It was the best of times, it was the worst of times.\n" * 60)
    sizes = {"steps": 2, "width": 16, "layers": 1, "heads": 2, "context": 16}
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    train = [HEADWAY, "train", "text.txt", "--name", "tiny", "--tokenizer", "char", *options]
    subprocess.run(train, cwd=folder, check=True, capture_output=True)
    result = check("tiny", cwd=folder)
    assert result.returncode == 0, result.stdout
    assert "runs/tiny (model, torch)" in result.stdout
    assert "✓ cache" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one target"),
        (["mine:Mine", "--self"], "give one target"),
        (["mine:two"], "on the command line --kind"),
        (["mine:Mien", "--kind", "self"], "did you mean 'Mine'"),
        (["mine:Mine", "--kind", "self"], "pass its arguments with --set name=value"),
        (["mine:Mine", "--set", "d_model"], "--set must be name=value"),
        (["mine:plain", "--kind", "qkv"], "expected a function or a module (got 3)"),
        (["broken:Mine", "--kind", "self"], "importing broken raised ModuleNotFoundError"),
        (["nothing.py:Mine", "--kind", "self"], "file 'nothing.py' not found"),
        (["nowhere"], "not found in runs"),
        (["mine.py"], "for example mine.py:MyAttention"),
        (["mine:attend", "--kind", "qkv", "--heads", "0"], "heads must be >= 1"),
        (["mine:attend", "--kind", "qkv", "--features", "maks"], "did you mean 'mask'"),
        (["mine:attend", "--kind", "qkv", "--only", "scales"], "unknown check 'scales'"),
        (["mine:attend", "--kind", "qkv", "--skip", "scales"], "unknown check 'scales'"),
        (["mine:attend", "--kind", "qkv", "--scale", "nan"], "scale must be > 0 (got nan)"),
        (["mine:attend", "--kind", "qkv", "--window", "0"], "window must be >= 1 (got 0)"),
        (["mine:attend", "--kind", "qkv", "--html", "no/where.html"], "no/where.html"),
        (["mine:attend", "--kind", "self"], "the width is unknown"),
    ],
)
def test_errors_are_one_line(folder, arguments, message):
    result = check(*arguments, cwd=folder)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # JAX compiles every shape, for each kernel that runs on it
def test_all_attentions_of_headway(folder):
    result = check("--self", cwd=folder)
    assert result.returncode == 0, result.stdout
    assert all(name in result.stdout for name in ("kernel sdpa on torch", "on jax", "GPT, modern"))
    assert "fail" not in result.stdout
