"""`headway train --processes N`: one of them prints, and one line says why all have ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headway.training import checkpoints

TINY = ["--width", "32", "--layers", "1", "--context", "8", "--vocabulary", "260"]
TINY += ["--no-compile", "--save-every", "5", "--evaluate-every", "5", "--device", "cpu"]
HEADWAY = [sys.executable, "-m", "headway", "train", "text.txt", *TINY]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 100)
    return tmp_path


def begun(place, *words, **environment):
    return subprocess.Popen(
        [*HEADWAY, *words],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def wait_for(condition, process):
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def steps(place, name):
    log = place / "runs" / name / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def workers(process):
    """The processes that a process has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def lines(text):
    """The lines of stderr, without the advice on the tiny settings."""
    advice = ("use fewer heads", "learning rate")
    return [line for line in text.splitlines() if not any(words in line for words in advice)]


def test_two_processes_print_once_and_write_one_run(place):
    process = begun(place, "--processes", "2", "--name", "two", "--steps", "6")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert lines(err) == []
    assert out.count("2 processes") == out.count("validation loss") == 1
    assert [record["step"] for record in steps(place, "two")] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in (place / "runs").iterdir()] == ["two"]
    assert checkpoints.latest(place / "runs" / "two" / "checkpoints").name == "step-000006"


@pytest.mark.parametrize("ending", ["killed", "ctrl-c"])
def test_when_one_ends_all_end_with_one_line_and_nothing_is_lost(place, ending):
    count = "3" if ending == "killed" else "2"
    process = begun(place, f"--processes={count}", "--name", "cut", "--steps", "100000")
    wait_for(lambda: len(steps(place, "cut")) >= 7, process)
    started = workers(process)
    assert len(started) == int(count)
    os.kill(
        started[1] if ending == "killed" else process.pid,
        signal.SIGKILL if ending == "killed" else signal.SIGINT,
    )
    out, err = process.communicate(timeout=60)
    if ending == "killed":
        assert process.returncode == 1
        (line,) = lines(err)
        assert "process 1 of 3 was ended by SIGKILL, so the others were stopped" in line
    else:
        assert process.returncode == 130, err
        assert lines(err) == []
        last = checkpoints.latest(place / "runs" / "cut" / "checkpoints")
        assert f"stopped after step {checkpoints.step_of(last):,}" in out
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    last = checkpoints.latest(place / "runs" / "cut" / "checkpoints")
    checkpoints.load(last)
    checkpoints.load(last, "optimizer")


def test_a_mistake_is_one_line(place):
    process = begun(place, "--processes", "3", "--batch", "2", "--name", "few")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert lines(err) == ["headway: batch must be at least the number of processes, 3 (got 2)"]
    assert not (place / "runs").exists()


def by_hand(place, rank, port, *words):
    """One of two processes, as torchrun on two machines starts them."""
    group = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    return begun(place, *words, **group, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def test_other_settings_on_another_machine_are_named(place):
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    one = by_hand(place, 0, port, "--name", "x", "--steps", "7")
    other = by_hand(place, 1, port, "--name", "x", "--steps", "8")
    _, err = one.communicate(timeout=120)
    other.communicate(timeout=60)
    assert one.returncode == other.returncode == 1
    (line,) = lines(err)
    assert "steps must be the same in every process: it is 7 in process 0 and 8 in" in line
    assert not (place / "runs").exists()


def test_a_port_in_use_is_named(place):
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen()
        port = opened.getsockname()[1]
        process = by_hand(place, 0, port)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = lines(err)
    assert f"the processes did not find each other at 127.0.0.1:{port}" in line
    assert "check that the port is free" in line
