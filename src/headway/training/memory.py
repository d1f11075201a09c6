"""Memory: the settings of the C library's allocator, and errors of any allocator."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # from malloc.h


def keep(of_any_size: bool = False) -> None:
    """Let glibc keep freed memory for the next step, so that its pages need not be mapped again.

    Mapping takes about a fifth of a small model's step on a CPU. With other C libraries this does
    nothing. of_any_size: keep blocks above 32 MB too, which are otherwise returned to the system at
    once; XLA allocates all the memory of a step as one block.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if of_any_size:
        mallopt(_ARENA_MAX, 1)  # further arenas are too small for such blocks
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)  # never
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 1 << 25)  # the old limit
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error means that PyTorch, JAX or Python could not allocate memory."""
    text = str(error)
    signs = ("out of memory", "can't allocate memory", "RESOURCE_EXHAUSTED", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    )
