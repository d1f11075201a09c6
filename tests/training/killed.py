"""Processes that save a checkpoint and are killed: `killed.py FOLDER`, run by test_killed.py.

FOLDER/calls-N: killed just before its Nth call to the file system, for every N that there is.
FOLDER/moment-N: killed at a random moment, seeded, 100 times. Each holds steps 1 and 2 before and
is killed while it saves step 3.
"""

import itertools
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from headway.training import checkpoints

WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "headway.fsync")


def save(folder, step):
    arrays = {"weights": np.full((300, 400), step, np.float32)}
    checkpoints.save(folder, step, {"model": arrays, "optimizer": arrays}, {"step": step})
    checkpoints.keep(folder, 2)


def prepared(folder):
    save(folder, 1)
    save(folder, 2)
    return folder


def die_at(call):
    """Be killed before the file system is called for the `call`th time."""
    made = 0

    def count(event, arguments):
        nonlocal made
        if event in WATCHED:  # os.kill is an event too
            made += 1
            if made == call:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync
    os.fsync = lambda descriptor: (sys.audit("headway.fsync"), fsync(descriptor))
    sys.addaudithook(count)


def killed(folder, before=lambda: None, after=None):
    """Save step 3 in a child, with something done before; killed `after` seconds."""
    child = os.fork()
    if child == 0:
        try:
            before()
            save(folder, 3)
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    root = Path(sys.argv[1])
    began = time.perf_counter()
    killed(prepared(root / "whole"))
    usual = time.perf_counter() - began
    for call in itertools.count(1):
        if not killed(prepared(root / f"calls-{call}"), partial(die_at, call)):
            break
    moments = random.Random(1)
    for number in range(100):
        killed(prepared(root / f"moment-{number}"), after=moments.uniform(0, usual))
