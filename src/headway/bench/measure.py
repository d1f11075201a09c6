"""Time and memory of workloads; nothing here is specific to attention.

Times are paired: every workload runs once in each round, so that a temporary slowdown of the
machine affects all of them, and two workloads are compared by their ratio in the same round. The
allocator keeps freed memory, as in `headway train`. Memory is measured in a separate call.
"""

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
SHORTEST = 0.002  # seconds of one measurement; shorter ones measure the clock and Python

Timings = dict[str, list[float]]  # seconds per call by name, one value per round


def settle(threads: int | None = None) -> None:
    """Prepare the process; call this before measuring and before JAX is imported.

    threads: by default those of PyTorch. JAX uses all cores that the process may run on, so their
    number is limited too. All threads share one heap, the only one that `peak_memory` can empty.
    """
    if threads is not None:
        torch.set_num_threads(threads)
        if hasattr(os, "sched_setaffinity"):  # Linux
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
    allocator.keep()


class Workload(NamedTuple):
    """Something to measure.

    finish: waits for the accelerator. once: the seconds of a warm call, if known.
    """

    work: Callable[[], object]
    finish: Callable[[], object] = lambda: None
    once: float | None = None

    def seconds(self, times: int = 1) -> float:
        """Return the seconds per call, the mean of several calls."""
        self.finish()
        began = time.perf_counter()
        for _ in range(times):
            self.work()
        self.finish()
        return (time.perf_counter() - began) / times


def alternate(
    workloads: Mapping[str, Workload],
    *,
    seconds: float,
    baseline: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
    after: Callable[[Timings], object] = lambda timings: None,
) -> Timings:
    """Measure the workloads in rounds; return the seconds per call of every round.

    A workload has as many rounds as `seconds` allow, from LEAST to MOST, and not more than the
    baseline. Short calls are repeated until a measurement takes SHORTEST. stopped: called before
    each measurement; True ends the rounds. after: called with the timings after each round.
    """
    timings: Timings = {name: [] for name in workloads}
    spent = dict.fromkeys(workloads, 0.0)
    repeats = {name: _repeats(workload) for name, workload in workloads.items()}
    # The order is random, because a workload may leave the caches and the heap in a state that
    # makes the next one faster or slower.
    order = random.Random(0)

    def has_time(name: str) -> bool:
        rounds = len(timings[name])
        return rounds < LEAST or (rounds < MOST and spent[name] < seconds)

    with no_collection():
        while names := [name for name in workloads if has_time(name)]:
            if baseline in workloads and baseline not in names:
                break
            order.shuffle(names)
            for name in names:
                if stopped():
                    return timings
                seconds_per_call = workloads[name].seconds(repeats[name])
                timings[name].append(seconds_per_call)
                spent[name] += seconds_per_call * repeats[name]
            gc.collect()
            after(timings)
    return timings


def ratios(times: Sequence[float], against: Sequence[float]) -> list[float]:
    """Return the speeds relative to `against`, for the rounds that both have."""
    return [other / time for time, other in zip(times, against, strict=False)]


def _repeats(workload: Workload) -> int:
    """Warm up, and return the number of calls in one measurement."""
    workload.work()
    if workload.once is not None and workload.once > 10 * SHORTEST:
        return 1
    times = 1
    while (spent := times * workload.seconds(times)) < SHORTEST:
        times = ceil(times * min(10, 1.5 * SHORTEST / max(spent, 1e-9)))
    return times


@contextmanager
def no_collection() -> Iterator[None]:
    """Disable automatic garbage collection, and exclude all existing objects from explicit ones: to
    scan those of a large library takes a third of a second."""
    if not gc.isenabled():  # nested
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
    """Return the peak memory of one call in bytes, minus the memory before it.

    On a CPU the resident memory (Linux; None elsewhere), on CUDA that of PyTorch's allocator.
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
            _CLEAR.write_text("5")  # resets the peak (man 5 proc)
        except OSError:
            return None
        before = _status("VmHWM")
        work()
        return max(0, _status("VmHWM") - before)


@contextmanager
def _no_kept_memory() -> Iterator[None]:
    """Make glibc request new memory for every larger block, and return it when it is freed.

    Memory that glibc has kept would be reused without raising the peak. So free memory is returned
    to the system and its addresses are allocated, which needs no memory because nothing is written.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):  # another C library
        yield
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.malloc_trim(0)
    libc.mallopt(_MMAP_THRESHOLD, _LARGE)
    blocks: list[int] = []
    block = 1 << 31
    while block >= _LARGE and len(blocks) < 1000:
        address = libc.malloc(block)
        if address is None or _is_mapped(address):  # the heap has no free block of this size
            libc.free(address)
            block //= 2
        else:
            blocks.append(address)
    try:
        yield
    finally:
        for address in blocks:
            libc.free(address)
        allocator.keep()


def _is_mapped(address: int) -> bool:
    """Whether this block is a memory map of its own: bit 1 of the word before it (malloc.c)."""
    word = ctypes.sizeof(ctypes.c_size_t)
    return bool(ctypes.c_size_t.from_address(address - word).value & 2)


_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of malloc.h
_LARGE = 1 << 16
_CLEAR = Path("/proc/self/clear_refs")


def _status(name: str, file: str = "/proc/self/status") -> int:
    """Read a line of such a file; return bytes."""
    with open(file, encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def memory(name: str = "MemAvailable", device: str = "cpu") -> int | None:
    """Return the available memory (MemAvailable) or all memory (MemTotal) in bytes.

    None if unknown (a CPU without Linux's /proc).
    """
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return int(free if name == "MemAvailable" else total)
    try:
        return _status(name, "/proc/meminfo")
    except OSError:
        return None


def peak_flops(dtype: torch.dtype, device: str = "cpu", size: int | None = None) -> float:
    """Return floating-point operations per second of the fastest of several matrix products."""
    size = size or (2048 if device == "cpu" else 8192)
    one, other = torch.randn(2, size, size, device=device).to(dtype).unbind()
    return 2 * size**3 / _best(lambda: one @ other, device)


def bandwidth(device: str = "cpu", size: int = 2**28) -> float:
    """Return bytes per second, read and written, of the fastest of several copies."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: str) -> float:
    """Return the seconds of the fastest call within half a second, after a warm-up."""
    workload = Workload(work, torch.cuda.synchronize if device == "cuda" else lambda: None)
    return min(workload.seconds() for _ in range(min(10, ceil(0.5 / workload.seconds()))))
