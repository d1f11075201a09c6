"""Several processes that train one model: their parts of a batch, and errors that all of them see.

Process 0 writes the log, the messages and the run directory. The engines start the processes'
communication; this module needs neither of them.
"""

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol, TypeVar, final, runtime_checkable

# How long the processes wait for each other: in a training step, and before it, while the first
# process of a machine reads and tokenizes the data.
STEP = timedelta(minutes=5)
PREPARATION = timedelta(hours=6)

T = TypeVar("T")


@runtime_checkable
class Processes(Protocol):
    """The processes of a run. rank: the number of this one, from 0 to count - 1.

    is_first_here: whether this is the first process of its machine.
    """

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def is_first_here(self) -> bool: ...

    def exchange(self, text: str, *, patiently: bool = False) -> list[str]:
        """Return the texts that all processes give, by rank; waits for all of them.

        patiently: wait for hours, because a process may prepare data. Raises ProcessLost if a
        process has ended or does not answer.
        """

    def leave(self) -> None:
        """Leave the other processes, at the end of the training."""


@final
class Alone:
    """The only process."""

    rank, count, is_first_here = 0, 1, True

    def exchange(self, text: str, *, patiently: bool = False) -> list[str]:
        """Return the text."""
        return [text]

    def leave(self) -> None:
        """Do nothing."""


ALONE = Alone()


class ProcessLost(RuntimeError):  # noqa: N818 - clear without the suffix Error
    """Another process has ended, or has not answered for minutes."""


# What PyTorch, JAX and their libraries say then.
_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Connection refused"),
    *("Broken pipe", "Socket closed", "Timed out", "timed out", "Timeout", "DEADLINE_EXCEEDED"),
    *("UNAVAILABLE", "NCCL error", "aborted", "Read error", "writev", "recvValue failed"),
)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process has ended or does not answer."""
    # JAX raises a ValueError for what Gloo reports.
    is_network = isinstance(error, RuntimeError | OSError) or "Gloo" in str(error)
    return isinstance(error, ProcessLost) or (
        is_network and any(sign in str(error) for sign in _LOST)
    )


def together(processes: Processes, work: Callable[[], T], *, patiently: bool = False) -> T:
    """Do work in every process and wait for all of them; patiently: as in `exchange`.

    If the work raises ValueError or OSError in one process, an error is raised in all of them.
    """
    error: ValueError | OSError | None = None
    try:
        result = work()
    except (ValueError, OSError) as raised:
        error = raised
    message = "" if error is None else str(error) or type(error).__name__
    messages = processes.exchange(message, patiently=patiently)
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message:  # most errors are those of all processes, or of work that process 0 does
            raise ValueError(message if rank == 0 else f"process {rank}: {message}")
    return result


def on_first(processes: Processes, work: Callable[[], object]) -> str:
    """Do work in process 0 only; return its result as a text, in every process."""
    result = together(processes, lambda: str(work()) if processes.rank == 0 else "")
    return processes.exchange(result)[0]


def first_text(processes: Processes, text: str) -> str:
    """Return the text of the first process that gives one, in every process."""
    return next(filter(None, processes.exchange(text)), "")


def first_here_then_others(processes: Processes, work: Callable[[], T]) -> T:
    """Do work in the first process of each machine, then in the others.

    The others find in the cache of the machine what the first one has written there.
    """
    if processes.count == 1:
        return work()
    is_first = processes.is_first_here
    early = together(processes, lambda: work() if is_first else None, patiently=True)
    late = together(processes, lambda: None if is_first else work(), patiently=True)
    result: Any = early if is_first else late
    return result  # type: ignore[no-any-return]


def require_equal(processes: Processes, values: Mapping[str, Any]) -> None:
    """Raise ValueError, in every process, if a value differs between the processes.

    The message names the first value that differs.
    """
    first, *others = map(json.loads, processes.exchange(json.dumps(values)))
    for rank, other in enumerate(others, start=1):
        for name, value in first.items():
            if other.get(name) != value:
                raise ValueError(
                    f"{name} must be the same in every process: it is {value!r} in process 0 and "
                    f"{other.get(name)!r} in process {rank}; start all processes with the same "
                    "command, data and versions"
                )


def share(rows: int, processes: Processes) -> range:
    """The rows of a batch that belong to this process; their numbers differ by at most one."""
    rank, count = processes.rank, processes.count
    return range(rows * rank // count, rows * (rank + 1) // count)


def micro_batches(
    rows: int, at_once: int | None, processes: Processes
) -> list[tuple[int, int, float]]:
    """Split this process's rows of a batch: (first row, number of rows, fraction of the batch).

    at_once: the maximum number of rows, by default all. Every process has the same number of
    micro-batches, because the processes compute them together; one that has too few rows repeats a
    row that counts for nothing.
    """
    mine, most = share(rows, processes), -(-rows // processes.count)
    at_once = min(at_once or most, most)
    parts = []
    for start in range(mine.start, mine.start + most, at_once):
        size = max(0, min(at_once, mine.stop - start))
        parts.append((start if size else min(mine.start, rows - 1), size or 1, size / rows))
    return parts
