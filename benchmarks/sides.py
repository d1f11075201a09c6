"""Two or more sides measured in one run: in separate processes, alternately.

A process of its own, since an allocator's settings and a number of threads are a process's.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from headway.bench.machine import machine as described

THREADS = 2
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # for all sides, as the command `headway` does


class Side:
    """A process that makes something once and then runs it when told.

    make: a function of a module; it gives a function that does one piece of work.
    """

    def __init__(self, make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, arguments), daemon=True)
        self._process.start()
        there.close()  # so that a process that died is noticed
        self.ready_after = self._here.recv()  # seconds

    def run(self, *arguments: Any) -> tuple[float, Any]:
        """The seconds that one piece of work took, and what it gave."""
        self._here.send(arguments)
        return self._here.recv()

    def seconds(self, *arguments: Any) -> float:
        """The seconds that one piece of work took."""
        return self.run(*arguments)[0]

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join()


def in_turns(
    sides: Mapping[str, Callable[[], float]], rounds: int, seed: int = 0
) -> dict[str, list[float]]:
    """Run every side once in each round, in random order; return the seconds of each round."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    order = random.Random(seed)
    for _ in range(rounds):
        for name in order.sample([*sides], len(sides)):
            spent[name].append(sides[name]())
    return spent


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {**described(), "threads": THREADS}


def _serve(there: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(THREADS)
    began = time.perf_counter()
    work = make(*arguments)
    there.send(time.perf_counter() - began)
    while True:
        try:
            asked = there.recv()
        except EOFError:  # the run is over
            return
        began = time.perf_counter()
        result = work(*asked)
        there.send((time.perf_counter() - began, result))
