"""`headway bench`, as a person would use and misuse it."""

import json

import pytest

from command import headway, run
from headway.bench.settings import LENGTHS
from headway.cli.bench import _plan
from headway.cli.main import app

SMALL = ["--batch", "2", "--width", "24", "--heads", "3", "--threads", "1", "--seconds", "5"]

CODE = """
import torch

def slow(q, k, v):
    later = torch.ones(q.shape[-2], k.shape[-2]).triu(1).bool()
    for _ in range(3):
        found = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf).softmax(-1) @ v
    return found

class Leaky(torch.nn.Module):
    def __init__(self, features):
        super().__init__()
        self.in_features = features

    def forward(self, x):
        print("attending")
        return (x @ x.mT).softmax(-1) @ x
"""


def bench(*arguments, cwd):
    return run(cwd, "bench", *arguments)


def result(folder):
    return json.loads((folder / "bench.json").read_text())


def test_a_sweep_with_ones_own_beside_it(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    arguments = ["--tokens", "40,20", "--module", "mine.py:slow", "--kernels", "sdpa"]
    done = bench(*SMALL, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "bench").iterdir()
    files = {file.name for file in folder.iterdir()}
    assert {"bench.json", "index.html", "time.png", "time.svg"} <= files
    assert str(folder.relative_to(tmp_path)) in done.stdout
    output = result(folder)
    assert [table["setting"]["tokens"] for table in output["tables"]] == [20, 40]
    for table in output["tables"]:
        rows = {row["name"]: row for row in table["rows"]}
        assert set(rows) == {"plain", "sdpa", "mine.py:slow"}
        assert all(row["verdict"] == "right" for row in rows.values())
        assert rows["sdpa"]["ran"] == "flash (CPU)"
        assert table["setting"]["head_dim"] == 8
    assert output["machine"]["threads"] == 1
    assert all(name in done.stdout for name in ("mine.py:slow", "20 tokens", "noise: plain"))
    assert not done.stderr


def test_a_leaking_module_of_x_is_named_and_not_ranked(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    named = ["--module", "mine.py:Leaky", "--set", "features=24", "--output", "here"]
    arguments = [*SMALL[:2], *SMALL[4:], "--tokens", "20", *named]
    done = bench(*arguments, "--kernels", "plain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (table,) = result(tmp_path / "here")["tables"]
    assert table["setting"]["projections"] is True
    assert table["setting"]["head_dim"] == 8
    leaky = table["rows"][-1]
    assert (leaky["name"], leaky["verdict"], leaky["rank"]) == ("mine.py:Leaky", "wrong", None)
    assert leaky["reason"].startswith("future: ")
    assert "wrong: mine.py:Leaky: future" in done.stdout
    again = bench(*arguments, "--kernels", "plain", cwd=tmp_path)
    assert again.returncode == 1
    assert "choose another folder" in again.stderr


def test_ctrl_c_writes_what_was_measured(tmp_path):
    lengths = ",".join(str(tokens) for tokens in range(16, 400, 8))
    written = tmp_path / "out" / "bench.json"  # after the first table
    words = ["bench", *SMALL, "--tokens", lengths, "--kernels", "sdpa", "--output", "out"]
    done = headway(tmp_path, *words, rc=130, interrupt=written.exists)
    assert "stopped; the results so far are in out" in done.stdout
    assert not done.stderr
    tables = result(written.parent)["tables"]
    assert 1 <= len(tables) < len(lengths.split(","))
    assert tables[0]["rows"][0]["verdict"] == "right"
    assert (written.parent / "index.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernels", "sdap"], "did you mean 'sdpa'"),
        (["--width", "100", "--heads", "3"], r"heads must divide the width \(got 3 and 100\)"),
        (["--tokens", "12,x"], "--tokens must be numbers"),
        (["--tokens", "0"], "tokens must be >= 1"),
        (["--heads", "4", "--kv-heads", "3"], r"kv_heads must divide heads \(got 3 and 4\)"),
        (["--dropout", "1"], "dropout must be at least 0"),
        (["--window", "0"], "window must be >= 1"),
        (["--seconds", "0"], "--seconds must be > 0"),
        (["--threads", "0"], r"--threads must be >= 1 \(got 0\)"),
        (["--set", "a=1"], "--set needs --module"),
        (["--module", "nothing.py:Name"], "file 'nothing.py' not found"),
        (
            ["--module", "torch.nn:Linear", "--set", "in_features=3"],
            "pass its arguments with --set",
        ),
    ],
)
def test_mistakes_get_one_line_and_no_folder(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        app(["bench", *arguments])
    assert len(str(raised.value).splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_the_plan_is_the_issues():
    plan = _plan({}, "cpu", None)
    book, sweep = plan[: -len(LENGTHS)], plan[-len(LENGTHS) :]
    for setting in book:
        assert (setting.tokens, setting.width, setting.heads) == (1024, 768, 12)
    assert [setting.batch for setting in book] == [8, 8, 1, 1, 1, 1, 1]
    message = " / ".join(map(str, book))
    for part in ("forward,", "backward", "compiled", "bfloat16", "window", "dropout", "with proj"):
        assert part in message
    assert [setting.tokens for setting in sweep] == [64, 128, 256, 512, 1024, 2048, 4096, 8192]
    assert len({setting.title() for setting in sweep}) == 1


def test_options_make_one_setting_and_lengths_a_sweep():
    (one,) = _plan({"width": 80, "dtype": "bfloat16"}, "cpu", None)
    assert (one.heads, one.head_dim, one.kv_heads, one.dtype) == (10, 8, 10, "bfloat16")
    assert not one.projections
    plan = _plan({"tokens": "32, 16", "heads": 6, "kv_heads": 2, "window": 3}, "cpu", None)
    assert [(s.tokens, s.heads, s.kv_heads, s.window) for s in plan] == [
        (16, 6, 2, 3),
        (32, 6, 2, 3),
    ]
