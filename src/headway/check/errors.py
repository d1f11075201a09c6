"""One exception for all errors of the attention under test."""

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS = 120  # a call that takes longer is stopped
PACKAGE = Path(__file__).parents[1]


class Refused(Exception):  # noqa: N818 - a result of a check, not a bug of the checks
    """The attention raised an error or does not support a call; the message says what happened.

    trace: where the error was raised, as `file:line, in function: code`; the last one is innermost.
    is_slow: it did not return in time.
    """

    def __init__(self, message: str, trace: tuple[str, ...] = (), *, is_slow: bool = False) -> None:
        super().__init__(message)
        self.trace, self.is_slow = trace, is_slow


class _TooSlow(Exception):  # noqa: N818 - see Refused
    pass


@contextmanager
def errors_as_refused() -> Iterator[None]:
    """Convert errors of the attention and `SystemExit` to `Refused`, with a one-line message.

    In the main thread, code that does not return in time is stopped.
    """
    try:
        with _limited():
            yield
    except Refused:
        raise
    except _TooSlow as error:
        trace = user_frames(error)
        raise Refused(f"did not return within {SECONDS} seconds", trace, is_slow=True) from None
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())[:200]
        raise Refused(f"raised {type(error).__name__}: {message}", user_frames(error)) from error


def user_frames(error: BaseException) -> tuple[str, ...]:
    """Return the frames of an error outside Headway and outside installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    return tuple(
        f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}: {frame.line}"
        for frame in frames
        if not frame.filename.startswith((str(PACKAGE), "<"))
        and "site-packages" not in frame.filename
        and "/lib/python" not in frame.filename
    )


@contextmanager
def _limited() -> Iterator[None]:
    """Raise `_TooSlow` in the code inside if it takes too long."""
    is_free = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None)
        if hasattr(signal, "SIGALRM")  # not on Windows
        else False
    )
    if not is_free:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
