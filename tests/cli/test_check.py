"""`headway check`, as a person would use and misuse it."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command import run
from headway.check import CHECKS

HEADWAY = str(Path(sys.executable).parent / "headway")

# A planted leak (`ahead`), made with arguments; a function; things that are none.
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
            each.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for each in self.qkv(x).chunk(3, -1)
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

def leaves(q, k, v):
    raise SystemExit(0)

def talks(q, k, v):
    print("attending")
    return attend(q, k, v)

plain = 3
"""
SIZES = ["--set", "d_model=16", "--set", "n_heads=4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "mine.py").write_text(CODE)
    (folder / "broken.py").write_text("import no_such_library\n")
    return folder


def check(*arguments, cwd):
    return run(cwd, "check", *arguments)


def test_a_right_module_passes(place):
    done = check("mine:Mine", "--kind", "self", "--causal", *SIZES, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "✓ future" in done.stdout
    assert "not applicable, for kind qkv: shifted" in done.stdout
    assert "mine:Mine (self, torch): 14 pass, 21 not applicable" in done.stdout


def test_a_planted_leak_is_named_with_its_line(place):
    leak = ["mine.py:Mine", "--kind", "self", "--causal", *SIZES, "--set", "ahead=1"]
    done = check(*leak, "--html", "out.html", cwd=place)
    assert done.returncode == 1
    assert "✗ future, gradient, prefix: the mask is shifted by one" in done.stdout
    assert "mine.py:17: later = torch.ones" in done.stdout
    page = (place / "out.html").read_text()
    assert "the mask is shifted by one" in page
    assert "http" not in page
    assert len(page.split("<tr>")) == 1 + len(CHECKS)
    HTMLParser().feed(page)
    assert check(*leak, cwd=place).stdout == done.stdout


def test_json_holds_every_finding(place):
    options = ["--kind", "qkv", "--features", "causal", "--set", "factor=2", "--json"]
    done = check("mine:attend", *options, cwd=place)
    assert done.returncode == 1
    (report,) = json.loads(done.stdout)
    assert [f["check"] for f in report["findings"] if f["verdict"] == "fail"] == ["scale"]
    assert len(report["findings"]) == len(CHECKS)


def test_a_file_may_import_its_neighbour_and_have_any_name(place):
    folder = place / "deeper"
    folder.mkdir()
    (folder / "beside.py").write_text("factor = 1.0\n")
    code = "from beside import factor\n" + CODE
    (folder / "tokenize.py").write_text(code.replace("factor=1.0", "factor=factor"))
    done = check("deeper/tokenize.py:attend", "--kind", "qkv", cwd=place)
    assert done.returncode == 0, done.stderr


def test_code_that_prints_or_leaves(place):
    done = check("mine:talks", "--kind", "qkv", "--json", cwd=place)
    assert json.loads(done.stdout)[0]["ok"]
    assert "attending" in done.stderr
    done = check("mine:leaves", "--kind", "qkv", cwd=place)
    assert done.returncode == 1
    assert "raised SystemExit" in done.stdout


def test_only_some_checks(place):
    done = check("mine:attend", "--kind", "qkv", "--only", "scale,order", "--json", cwd=place)
    (report,) = json.loads(done.stdout)
    assert [f["check"] for f in report["findings"]] == ["scale", "order"]
    assert done.returncode == 0


def test_a_run(place):
    (place / "text.txt").write_text("It was the best of times, it was the worst of times.\n" * 60)
    sizes = {"steps": 2, "width": 16, "layers": 1, "heads": 2, "context": 16}
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    train = [HEADWAY, "train", "text.txt", "--name", "tiny", "--tokenizer", "char", *options]
    subprocess.run(train, cwd=place, check=True, capture_output=True)
    done = check("tiny", cwd=place)
    assert done.returncode == 0, done.stdout
    assert "runs/tiny (model, torch)" in done.stdout
    assert "✓ cache" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one target"),
        (["mine:Mine", "--self"], "give one target"),
        (["mine:Mine", *SIZES], "declare the kind of Mine: kind='qkv'"),
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
        (["mine:attend", "--kind", "qkv", "--html", "no/where.html"], "no/where.html"),
        (["mine:attend", "--kind", "self"], "the width is unknown"),
    ],
)
def test_mistakes_get_one_line(place, arguments, message):
    done = check(*arguments, cwd=place)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # JAX compiles every shape, for each kernel that runs on it
def test_all_of_headways_own(place):
    done = check("--self", cwd=place)
    assert done.returncode == 0, done.stdout
    assert all(name in done.stdout for name in ("kernel sdpa on torch", "on jax", "GPT, modern"))
    assert "fail" not in done.stdout
