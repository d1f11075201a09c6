"""Three processes that train and are killed: `several_killed.py FOLDER MOMENTS`.

At every moment, one of them at random, or all, are killed. Then FOLDER/run is checked: its last
checkpoint must be complete and equal to that of the run that nobody killed, and no earlier one than
was there before. FOLDER/report.json has the seconds that the others took to end, and the steps.
If MOMENTS is 0, one of them hangs instead.
"""

import json
import os
import random
import runpy
import signal
import socket
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from headway.torch import engine, processes
from headway.training import checkpoints

_NAMES = runpy.run_path(str(Path(__file__).with_name("several.py")))
CASES, trained = _NAMES["CASES"], _NAMES["trained"]
STEPS, COUNT = 400, 3
OF = replace(
    CASES["muon"], training=replace(CASES["muon"].training, steps=STEPS, save_every=2, batch=4)
)


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def started(run, until=None):
    """Train the run in three processes, from its last checkpoint; return their numbers."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in range(COUNT):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(COUNT)}
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the errors of those that lost another
            try:
                trained(run, OF, engine.join("cpu"), until=until)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    return children


def ended(children):
    """Wait for the processes; return the seconds and their exit codes."""
    began = time.monotonic()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return time.monotonic() - began, codes


def content(checkpoint):
    return {file.name: file.read_bytes() for file in checkpoint.iterdir()}


def last_step(run):
    saved = checkpoints.complete(run / "checkpoints")
    return checkpoints.step_of(saved[-1]) if saved else -1


def main(folder, moments):
    torch.set_num_threads(1)
    chance, expected, run = random.Random(0), folder / "expected", folder / "run"
    keep = checkpoints.keep
    checkpoints.keep = lambda *_: None  # of the run that nobody kills, all are needed
    began = time.monotonic()
    _, codes = ended(started(expected, until=160))
    assert codes == [0] * COUNT, codes
    usual = (time.monotonic() - began) / 3
    checkpoints.keep = keep
    report = []
    while len(report) < moments:
        if last_step(run) >= 80:  # again from the beginning
            run = folder / f"run-{len(report)}"
        children, before = started(run, until=160), last_step(run)
        time.sleep(chance.uniform(0, 1) * usual)
        victims = children if chance.random() < 0.5 else [chance.choice(children)]
        seen = last_step(run)
        for child in victims:
            os.kill(child, signal.SIGKILL)
        seconds, codes = ended(children)
        step = last_step(run)
        assert step >= seen >= before
        for checkpoint in checkpoints.complete(run / "checkpoints"):
            assert content(checkpoint) == content(expected / "checkpoints" / checkpoint.name)
        if step >= 0:
            last = checkpoints.latest(run / "checkpoints")
            for part in ("model", "optimizer"):
                tensors, about = checkpoints.load(last, part)
                assert about["step"] == step
                assert all(np.isfinite(array).all() for array in tensors.values())
        report.append({"killed": len(victims), "seconds": seconds, "step": step, "codes": codes})
        (folder / "report.json").write_text(json.dumps(report))


def hang(folder):
    """Stop one of the processes without ending it; the others must end by themselves."""
    processes.STEP = timedelta(seconds=4)  # in the forked processes, too
    children = started(folder / "hang", until=100)
    while last_step(folder / "hang") < 4:
        time.sleep(0.05)
    os.kill(children[1], signal.SIGSTOP)
    seconds, codes = ended([children[0], children[2]])
    os.kill(children[1], signal.SIGKILL)
    (folder / "report.json").write_text(json.dumps({"seconds": seconds, "codes": codes}))


if __name__ == "__main__":
    place, count = Path(sys.argv[1]), int(sys.argv[2])
    main(place, count) if count else hang(place)
