"""The allocator's settings; a process's own."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # of malloc.h


def keep(of_any_size: bool = False) -> None:
    """Let glibc keep freed memory for the next step, rather than fault every page in anew.

    About a fifth of a small model's step on a CPU is spent on that; other C libraries have no
    such switch. of_any_size: blocks above 32 MB too, which otherwise go back at once: XLA takes
    all the memory of a step as one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if of_any_size:
        mallopt(_ARENA_MAX, 1)  # others are too small for such blocks
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)  # never
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 1 << 25)  # the old limit
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
