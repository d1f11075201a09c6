"""Time and memory of pieces of work. Nothing here knows what attention is.

Times are paired: in each round every side runs once, so that whatever slows the machine for a
while slows all of them; two sides are compared by their ratio in the same round. Freed memory is
kept for the next call, as `headway train` does. Memory is measured in a call of its own.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from headway.training import memory as allocator

LEAST, MOST = 3, 20  # rounds
SHORTEST = 0.002  # seconds of one measurement: below, the clock and the interpreter count

Found = dict[str, list[float]]


def _nothing() -> None:
    pass


def settle(threads: int | None = None) -> None:
    """Before anything is measured (and JAX is loaded): so many threads, by default PyTorch's.

    JAX takes every core that it may run on, so a number that is given says how many those are. All
    threads share one heap, which is what `peak_memory` can look into.
    """
    if threads is not None:
        torch.set_num_threads(threads)
        if hasattr(os, "sched_setaffinity"):  # Linux
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
    allocator.keep()


class Side(NamedTuple):
    """Something to measure.

    finish: waits until what `work` began is done (an accelerator works on by itself).
    once: the seconds that a warm call took, if there was one.
    """

    work: Callable[[], object]
    finish: Callable[[], object] = _nothing
    once: float | None = None

    def seconds(self, times: int = 1) -> float:
        """What a call takes, of so many in a row."""
        self.finish()
        began = time.perf_counter()
        for _ in range(times):
            self.work()
        self.finish()
        return (time.perf_counter() - began) / times


def in_turns(
    sides: Mapping[str, Side],
    *,
    seconds: float,
    yardstick: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
    after: Callable[[Found], object] = lambda found: None,
) -> Found:
    """Seconds a call, one number a round, for each side.

    A side has as many rounds as `seconds` allow it, from LEAST to MOST, and none that the yardstick
    has not. A short call is repeated until a measurement takes SHORTEST. stopped: asked before each
    measurement, whether to leave it at that. after: called with what was found after each round.
    """
    found: Found = {name: [] for name in sides}
    spent = dict.fromkeys(sides, 0.0)
    repeats = {name: _repeats(side) for name, side in sides.items()}
    # Not in turns but in any order, for a side may leave the caches and the heap to the next one
    # in a state that helps or hinders it.
    order = random.Random(0)

    def goes_on(name: str) -> bool:
        rounds = len(found[name])
        return rounds < LEAST or (rounds < MOST and spent[name] < seconds)

    with no_collection():
        while names := [name for name in sides if goes_on(name)]:
            if yardstick in sides and yardstick not in names:
                break
            order.shuffle(names)
            for name in names:
                if stopped():
                    return found
                took = sides[name].seconds(repeats[name])
                found[name].append(took)
                spent[name] += took * repeats[name]
            gc.collect()
            after(found)
    return found


def ratios(found: Sequence[float], against: Sequence[float]) -> list[float]:
    """How many times as fast as the other side, round by round, for the rounds that both had."""
    return [other / own for own, other in zip(found, against, strict=False)]


def _repeats(side: Side) -> int:
    """How many calls make a measurement; the side is warm thereafter."""
    if side.once is not None and side.once > 10 * SHORTEST:
        side.work()
        return 1
    side.work()
    times = 1
    while (spent := times * side.seconds(times)) < SHORTEST:
        times = ceil(times * min(10, 1.5 * SHORTEST / max(spent, 1e-9)))
    return times


@contextmanager
def no_collection() -> Iterator[None]:
    """Within, Python collects garbage only when it is told to, and only what came to be within:
    to look through all that a large library made takes a third of a second."""
    if not gc.isenabled():  # within another
        yield
        return
    gc.collect()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


def peak_memory(work: Callable[[], object], device: str = "cpu") -> int | None:
    """The most bytes that one call holds beyond those held before it; what it returns is counted.

    On a CPU: the peak of the resident memory (Linux; None elsewhere). On CUDA: PyTorch's allocator.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _CLEAR.exists():
        return None
    with _no_kept_memory():
        try:
            _CLEAR.write_text("5")  # the peak is now what is resident now (man 5 proc)
        except OSError:
            return None
        before = _status("VmHWM")
        work()
        return max(0, _status("VmHWM") - before)


@contextmanager
def _no_kept_memory() -> Iterator[None]:
    """Within, every larger block is new memory, and goes back to the system when it is freed.

    Memory that glibc kept would be used again, unseen. So what is free goes back, and its addresses
    are taken: that costs no memory, for nobody writes there.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):  # another C library
        yield
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.malloc_trim(0)
    libc.mallopt(_MMAP_THRESHOLD, _LARGE)
    taken: list[int] = []
    block = 1 << 31
    while block >= _LARGE and len(taken) < 1000:
        address = libc.malloc(block)
        if address is None or _is_mapped(address):  # nothing so large is free in the heap
            libc.free(address)
            block //= 2
        else:
            taken.append(address)
    try:
        yield
    finally:
        for address in taken:
            libc.free(address)
        allocator.keep()


def _is_mapped(address: int) -> bool:
    """Whether glibc made a map for this block alone: bit 1 of the word before it (malloc.c)."""
    word = ctypes.sizeof(ctypes.c_size_t)
    return bool(ctypes.c_size_t.from_address(address - word).value & 2)


_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of malloc.h
_LARGE = 1 << 16
_CLEAR = Path("/proc/self/clear_refs")


def _status(name: str, file: str = "/proc/self/status") -> int:
    """A line of such a file, in bytes."""
    with open(file, encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def memory(name: str = "MemAvailable", device: str = "cpu") -> int | None:
    """Bytes of memory: MemAvailable (what is free, or can be made so) or MemTotal.

    None where that cannot be known (a CPU without Linux's /proc).
    """
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return int(free if name == "MemAvailable" else total)
    try:
        return _status(name, "/proc/meminfo")
    except OSError:
        return None


def peak_flops(dtype: torch.dtype, device: str = "cpu", size: int | None = None) -> float:
    """Floating-point operations a second of the best of several products of square matrices."""
    size = size or (2048 if device == "cpu" else 8192)
    one, other = torch.randn(2, size, size, device=device).to(dtype).unbind()
    return 2 * size**3 / _best(lambda: one @ other, device)


def bandwidth(device: str = "cpu", size: int = 2**28) -> float:
    """Bytes a second, read and written, of the best of several copies of a large array."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: str) -> float:
    """The shortest of half a second's calls, the first not counted."""
    side = Side(work, torch.cuda.synchronize if device == "cuda" else _nothing)
    return min(side.seconds() for _ in range(min(10, ceil(0.5 / side.seconds()))))
