"""Grade a file in a separate process, with limits on time, memory and output.

The process is forked from one that has imported NumPy, PyTorch and the graders already
(`forkserver` of `multiprocessing`), so a grade does not wait for imports.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BufferedWriter, FileIO, TextIOWrapper
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path

from headway import cache
from headway.learn.exercise import Exercise
from headway.learn.grades import Grade

WAITING = 3  # times as long may pass, because other programs run too
MEMORY = 2 * 2**30  # bytes, in addition to what the imports use
CHECK = 0.01  # seconds between two looks at the memory
START = 60  # seconds for the imports
POLL = 0.2  # seconds between two questions whether the grade is still wanted
MANY = 1000  # printed lines, which take time
LINES = 10  # of the output, at its beginning and at its end
BYTES = 4096  # likewise
WIDTH = 200  # characters of a line
# Each grade has one thread: threads do not survive a fork, and each reserves memory.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# What JAX compiles is kept: otherwise most of each grade is the compilation of small programs.
ENVIRONMENT |= {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# The current folder may contain files such as random.py, which are not those of Python.
ENVIRONMENT["PYTHONSAFEPATH"] = "1"
MARK = "HEADWAY_GRADE"  # in the environment of all programs that an answer starts
# The module that starts the program is imported in each process again.
PRELOAD = ["headway.cli.main", "torch", "headway.learn.worker"]

_context = get_context("forkserver")


@contextmanager
def _environment() -> Iterator[None]:
    """Set the variables that the process reads when it starts."""
    variables = ENVIRONMENT.copy()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with suppress(OSError):  # no home, or it is not writable
            variables["JAX_COMPILATION_CACHE_DIR"] = str(cache.folder("jax"))
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def warm_up() -> None:
    """Start the process that imports what grades need. Does not wait for it."""
    _context.set_forkserver_preload(PRELOAD)
    with _environment():
        forkserver.ensure_running()


class Cancelled(Exception):  # noqa: N818 - as `Wrong`: no error
    """Raised by `grade` when the grade is no longer wanted."""


def grade(
    path: Path,
    exercise: Exercise,
    seconds: float | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Grade:
    """Grade a file. Every error of its code, and every limit, is a `Grade` too.

    The grade is that of the text which the file has now, also if it is saved meanwhile.
    """
    path, content = path.absolute(), None
    with suppress(OSError):  # the process describes it
        content = path.read_bytes()
    seconds = seconds or exercise.seconds
    warm_up()
    results, results_of_child = _context.Pipe(duplex=False)
    output, output_of_child = _context.Pipe(duplex=False)
    arguments = (path, content, exercise, seconds, MEMORY, results_of_child, output_of_child)
    process = _context.Process(target=_work, args=arguments, daemon=True)
    process.start()
    results_of_child.close()
    output_of_child.close()
    try:
        said, printed = _read(results, output, seconds, is_cancelled)
        line = said.rpartition("\n")[2]
        process.join(0 if line.startswith("{") else 1)
    finally:
        assert process.pid is not None
        _kill(process.pid)
        results.close()
        output.close()
    if line.startswith("{"):
        grade = Grade.from_json(json.loads(line))
    else:
        grade = _stopped(said, path, content or b"", seconds, process.exitcode, printed)
    return replace(grade, printed=str(printed))


def _kill(pid: int) -> None:
    """End a process, also one that waits for its threads, and all programs that it started."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for pause in (0.02, 0):  # twice, because a program that has just started has no environment yet
        for environment in Path("/proc").glob("[0-9]*/environ"):  # also programs in other groups
            with suppress(OSError):  # it has ended, or belongs to another user
                if f"{MARK}={pid}\0".encode() in environment.read_bytes():
                    os.kill(int(environment.parent.name), signal.SIGKILL)
        time.sleep(pause)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _read(
    results: Connection, output: Connection, seconds: float, is_cancelled: Callable[[], bool]
) -> tuple[str, Printed]:
    """Read both pipes until the result is complete, the process has ended or time is up."""
    said, printed, open_ = b"", Printed(), [results, output]
    deadline = time.monotonic() + START
    while results in open_ and not said.endswith(b"}\n"):
        ready = wait(open_, POLL)
        if is_cancelled():
            raise Cancelled
        if not ready and time.monotonic() > deadline:
            said += b"\nTimeout"
            break
        for pipe in (results, output):
            if pipe in ready:
                data = os.read(pipe.fileno(), 2**16)
                if not data:
                    open_.remove(pipe)
                elif pipe is output:
                    printed.add(data)
                else:
                    if not said:
                        deadline = time.monotonic() + WAITING * seconds + 2
                    said += data
    while output in open_ and wait([output], 0) and (data := os.read(output.fileno(), 2**16)):
        printed.add(data)
    return said.decode(errors="replace").strip(), printed


class Printed:
    """The beginning and the end of what was printed, and the number of lines."""

    def __init__(self) -> None:
        self._first, self._last, self.lines, self._bytes = b"", b"", 0, 0

    def add(self, data: bytes) -> None:
        """Add some output."""
        self.lines += data.count(b"\n")
        self._bytes += len(data)
        self._first += data[: BYTES - len(self._first)]
        self._last = (self._last + data)[-BYTES:]

    def __str__(self) -> str:
        in_both = len(self._first) + len(self._last) - self._bytes
        between = b"\n...\n" if in_both < 0 else b""
        lines = _lines(self._first + between + self._last[max(in_both, 0) :])
        if len(lines) > 2 * LINES:
            count = self.lines + (not self._last.endswith(b"\n"))
            left_out = max(count, len(lines)) - 2 * LINES
            lines[LINES:-LINES] = [f"... {left_out:,} more lines ..."]
        return "\n".join(lines)


def _lines(text: bytes) -> list[str]:
    return [line[:WIDTH] for line in text.decode(errors="replace").splitlines()]


class _Stdout(TextIOWrapper):
    """Lines are written at once, in case the process is stopped; many lines are written faster."""

    _writes = 0

    def write(self, text: str) -> int:
        self._writes += 1
        if self._writes == 1000:
            self.reconfigure(line_buffering=False)
        return super().write(text)


def _work(
    path: Path,
    content: bytes | None,
    exercise: Exercise,
    seconds: float,
    memory: int,
    results: Connection,
    output: Connection,
) -> None:
    """Grade in the new process, and write the result as one line."""
    from headway.learn.worker import grade_here  # late: it imports PyTorch

    os.setsid()  # so that Ctrl-C does not reach it, and it is killed with all its processes
    os.environ[MARK] = str(os.getpid())
    _end_with_the_caller(results, output)
    if content and b"import jax" in content:
        with suppress(Exception):  # such as JAX that is not installed: the answer raises it again
            import jax.numpy  # noqa: F401 - seconds that are none of the answer
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.path.append(str(path.parent))  # at the end, because it may contain files such as random.py
    sys.stdout = stdout = _Stdout(BufferedWriter(FileIO(1, "w")), line_buffering=True)
    faulthandler.enable(results.fileno())
    faulthandler.register(signal.SIGPROF, results.fileno(), chain=True)  # and end the process
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(WAITING * seconds, exit=True, file=results.fileno())
    _limit_memory(memory)
    os.write(results.fileno(), b"started\n")
    grade = grade_here(path, exercise, content)
    signal.setitimer(signal.ITIMER_REAL, 0)
    with suppress(ValueError):  # the answer closed it
        stdout.flush()
    with open(results.fileno(), "w", closefd=False) as file:
        file.write(json.dumps(grade.as_json(), default=str) + "\n")


def _end_with_the_caller(*pipes: Connection) -> None:
    """Start a process that waits for the end of the caller, which signals may kill, and then ends
    the grade."""
    caller, grade = parent_process(), os.getpid()
    assert caller is not None
    if os.fork() == 0:
        for pipe in pipes:  # their end is that of the answer
            pipe.close()
        caller.join()
        _kill(grade)


def _limit_memory(memory: int) -> None:
    """Let MemoryError be raised. For many small objects it is raised before the memory is full,
    because Python needs some to tell the line."""
    with suppress(OSError):  # not on macOS
        most = _memory() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

        def check(*_: object) -> None:
            is_limited = resource.getrlimit(resource.RLIMIT_AS)[0] == most
            if is_limited and _memory() > most - memory // 8:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise MemoryError

        signal.signal(signal.SIGALRM, check)
        signal.setitimer(signal.ITIMER_REAL, CHECK, CHECK)


def _memory() -> int:
    """Return the address space that this process uses, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _stopped(
    said: str, path: Path, content: bytes, seconds: float, status: int | None, printed: Printed
) -> Grade:
    """Return the grade of an answer whose process ended without a result."""
    frames = re.findall(r'File "(.*?)", line (\d+)', said)
    number = next((int(line) for file, line in frames if file == str(path)), None)
    code = ""
    if number is not None:
        with suppress(UnicodeDecodeError, IndexError):
            code = content.decode().splitlines()[number - 1].strip()
    if not said:
        raise RuntimeError("the process that grades answers did not start")
    waited = re.search("^Timeout", said, re.MULTILINE)
    if waited or status == -signal.SIGPROF:
        message = f"It did not return within {seconds:g} seconds of the processor. Is there a loop "
        message += "without end?"
        if waited:
            message = f"It did not return within {WAITING * seconds:g} seconds. Does it wait for "
            message += "something?"
        if printed.lines >= MANY:
            message += f" It printed {printed.lines:,} lines, which takes time too: print less."
        return Grade(False, "time", message, number, code)
    message = f"It ended Python without a result (exit status {status}), as os._exit() does."
    if status is not None and status < 0:
        message = f"Python crashed: {signal.strsignal(-status)} (signal {-status})."
    return Grade(False, "crash", message, number, code)
