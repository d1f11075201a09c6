"""The command itself, in a process of its own, as a person would use and misuse it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headway.ladder.rungs import LADDER

HEADWAY = str(Path(sys.executable).parent / "headway")
TEXT = "It was the best of times, it was the worst of times.\n" * 60
SIZES = {"steps": 4, "evaluate-every": 2, "width": 16, "layers": 1, "heads": 2, "context": 8}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
TINY += ["--tokenizer", "char"]


def headway(*arguments, cwd):
    return subprocess.run(
        [HEADWAY, *arguments], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text and a run that learnt from it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text(TEXT)
    done = headway("train", "text.txt", "--name", "tiny", *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "a sample" in done.stdout
    assert "step 4/4" in done.stdout
    return folder


def test_a_run_leaves_its_files(place):
    run = place / "runs" / "tiny"
    assert sorted(f.name for f in run.iterdir()) == [
        *("checkpoints", "config.json", "log.jsonl", "tokenizer.json")
    ]
    kept = sorted(f.name for f in (run / "checkpoints").iterdir())
    assert kept == ["step-000000", "step-000004"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert [record["validation"] is not None for record in log] == [False, True, False, True]
    assert json.loads((run / "config.json").read_text())["model"]["width"] == 16


def test_writing_follows_its_seed(place):
    wrote = [
        headway("generate", "tiny", "It was", "--tokens", "60", "--seed", seed, cwd=place).stdout
        for seed in ("1", "1", "2")
    ]
    assert wrote[0].startswith("It was")
    assert len(wrote[0]) == len("It was") + 60 + 1
    assert wrote[0] == wrote[1] != wrote[2]


BAD = {
    "missing text": ("train nofile.txt", "no file or folder nofile.txt"),
    "empty text": ("train empty.txt", "is empty"),
    "short text": ("train short.txt --tokenizer char", "too few for a context of 64"),
    "heads": ("train text.txt --heads 3", "3 heads do not divide"),
    "dots": ("train text.txt --name ../x", "is no name for a run"),
    "option": ("train text.txt --stps 3", "Did you mean --steps?"),
    "verb": ("trian", 'Did you mean "train"?'),
    "kind": ("train --preset modrn", "modrn"),
    "number": ("train text.txt --steps many", "many"),
    "rung": ("train text.txt --rung casual", "did you mean 'causal'"),
    "rung and preset": ("train text.txt --rung causal --preset modern", "leave the rung out"),
    "dropout": ("train text.txt --dropout 1.5", "share from 0"),
    "existing run": ("train text.txt --name tiny", "already: choose another --name"),
    "no run": ("generate tinny", "there are tiny"),
    "unseen": ("generate tiny ü", "never saw 'ü'"),
    "empty prompt": ("generate tiny ''", "prompt is empty"),
    "temperature": ("generate tiny It --temperature -1", "temperature is 0 or more"),
    "ladder": ("ladder multi-head", "did you mean 'multihead'"),
    "no words": ("ladder causal --text ''", "no word"),
}


@pytest.mark.parametrize(("line", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_a_failure_and_no_file(place, line, said):
    (place / "empty.txt").write_text("")
    (place / "short.txt").write_text("too short")
    before = {f: f.stat().st_mtime_ns for f in place.rglob("*")}
    done = headway(*("" if word == "''" else word for word in line.split()), cwd=place)
    assert done.returncode not in (0, 130)
    assert done.stderr.startswith("headway: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert {f: f.stat().st_mtime_ns for f in place.rglob("*")} == before


def test_the_ladder_shows_all_rungs_and_your_own_words(place):
    whole = headway("ladder", cwd=place).stdout
    places = [whole.find(f"─ {name} ─") for name in LADDER]
    assert places == sorted(places)
    assert min(places) > 0
    assert whole.count("╭─ ") == 9
    one = headway("ladder", "causal", "--text", "some wörds of mine", cwd=place).stdout
    assert all(word in one for word in ("some", "wörds", "of", "mine"))
    assert one.count("╭─ ") == 1


def test_ctrl_c_finishes_the_step_saves_and_exits_130(place):
    from headway.torch import weights
    from headway.training.runs import Run

    command = [HEADWAY, "train", "text.txt", "--name", "stopped", *TINY]
    command[command.index("--steps") + 1] = "100000"
    with subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        log = place / "runs" / "stopped" / "log.jsonl"
        for _ in range(600):
            if log.exists() and log.read_text().count("\n") > 2:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    steps = log.read_text().count("\n")
    assert f"stopped after step {steps:,}" in said
    run = Run.open(place / "runs" / "stopped")
    assert weights.load(run).config == run.config.model
    assert (run.checkpoints / f"step-{steps:06d}").is_dir()
