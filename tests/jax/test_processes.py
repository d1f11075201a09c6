"""Training in JAX with several processes: equal losses, resuming, and processes that end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from headway.training import checkpoints
from headway.training.runs import Run

SCRIPT = Path(__file__).with_name("several.py")

pytestmark = pytest.mark.xdist_group("several processes in JAX")


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def train(folder, count, engine="jax", until=50, **training):
    """Start the processes, wait for them, and return the differences between the machines."""
    several = {"WORLD_SIZE": str(count), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    several["PYTHONPATH"] = str(SCRIPT.parents[1])  # of the modules that several tests import
    command = [sys.executable, str(SCRIPT), str(folder), engine, str(until), json.dumps(training)]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **several, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        printed = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, printed
    assert all(not out for out, _ in printed[1:])
    return json.loads(printed[0][0])


def logged(folder, key):
    return [line[key] for line in Run(folder).logged() if line.get(key) is not None]


def assert_same_curves(one, other):
    for key in ("loss", "gradient_norm", "validation"):
        assert logged(one, key) == pytest.approx(logged(other, key), rel=2e-5), key


def assert_equal_losses(folder, count, **training):
    """Train with one process and with several, and compare the losses."""
    for number in (1, count):
        train(folder / str(number), number, **training)
    assert len(set(logged(folder / "1", "loss"))) == 50
    assert_same_curves(folder / "1", folder / str(count))


def test_three_processes_give_the_losses_of_one(tmp_path):
    """With dropout, 7 windows in a batch, which do not divide evenly, and micro-batches of two."""
    assert_equal_losses(tmp_path, 3, optimizer="adamw")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "training"),
    [
        (2, {}),
        (4, {"optimizer": "adamw", "batch": 8, "micro_batch": None}),
        (4, {"optimizer": "adamw", "batch": 5, "micro_batch": 1}),
    ],
    ids=str,
)
def test_any_number_of_processes_gives_the_same_losses(tmp_path, count, training):
    assert_equal_losses(tmp_path, count, **training)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_resumes_with_any_number_of_processes_and_engine(tmp_path):
    train(tmp_path / "complete", 2, optimizer="adamw")
    assert train(tmp_path / "same", 2, until=25, optimizer="adamw") == []
    assert train(tmp_path / "same", 2) == []
    for part in ("model", "optimizer"):
        one, other = (
            checkpoints.load(checkpoints.latest(tmp_path / name / "checkpoints"), part)[0]
            for name in ("complete", "same")
        )
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    for key in ("loss", "gradient_norm", "validation"):
        assert logged(tmp_path / "same", key) == logged(tmp_path / "complete", key)

    folder = tmp_path / "others"
    train(folder, 3, until=10, optimizer="adamw")
    assert "processes was 3, is 1" in train(folder, 1, until=20)
    assert "engine was jax, is torch" in train(folder, 1, "torch", until=30)
    assert "processes was 1, is 2" in train(folder, 2, until=40)
    assert "processes was 2, is 4" in train(folder, 4)
    for key in ("loss", "validation"):
        expected = logged(tmp_path / "complete", key)
        assert logged(folder, key) == pytest.approx(expected, rel=2e-4), key


SMALL = "--layers 1 --width 16 --heads 1 --context 16 --tokenizer byte --evaluation-windows 4"


def headway(folder, *options):
    """Start `headway train` in JAX on this machine."""
    command = [sys.executable, "-m", "headway", "train", "manual", "--engine", "jax"]
    return subprocess.Popen(
        [*command, "--device", "cpu", *SMALL.split(), *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def messages(printed):
    """The lines of stderr, without the advice about the settings."""
    return [line for line in printed.splitlines() if "usual" not in line and "recipe" not in line]


@pytest.mark.slow
def test_invalid_settings_are_one_line(tmp_path):
    started = headway(tmp_path, "--processes", "3", "--batch", "2")
    out, err = started.communicate(timeout=120)
    assert started.returncode == 1
    expected = "headway: batch must be at least the number of processes, 3 (got 2)"
    assert (out, messages(err)) == ("", [expected])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_processes_with_one_line(tmp_path):
    options = ("--learning-rate", "1e30", "--clip", "1e30")
    started = headway(tmp_path, "--processes", "2", "--batch", "4", *options)
    _, err = started.communicate(timeout=120)
    assert started.returncode == 1
    [line] = messages(err)
    assert "step 2 is not finite" in line or "loss of step 2 is nan" in line


def worker(folder, rank):
    """The process of a rank, once the run has a log."""
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/log.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            values = (process / "environ").read_bytes().split(b"\0")
            is_here = (process / "cwd").resolve() == folder.resolve()
        except OSError:
            continue
        if is_here and f"RANK={rank}".encode() in values:
            return int(process.name)
    raise AssertionError(f"no process {rank}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_within_a_minute(tmp_path, rank):
    options = ("--processes", "2", "--batch", "4", "--steps", "100000")
    started = headway(tmp_path, *options)
    os.kill(worker(tmp_path, rank), signal.SIGKILL)
    began = time.monotonic()
    _, err = started.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert started.returncode == 1
    [line] = messages(err)
    assert line.endswith("the run continues from its last checkpoint with --resume")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_ctrl_c_stops_all_processes_after_a_step(tmp_path):
    options = ("--processes", "2", "--batch", "4", "--steps", "100000", "--name", "x")
    started = headway(tmp_path, *options)
    worker(tmp_path, 1)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=120)
    assert started.returncode == 130
    assert messages(err) == []
    assert "stopped after step" in out
    assert checkpoints.complete(tmp_path / "runs" / "x" / "checkpoints")
