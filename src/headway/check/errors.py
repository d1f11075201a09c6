"""One exception for all errors of the attention under test."""

from collections.abc import Iterator
from contextlib import contextmanager


class Refused(Exception):  # noqa: N818 - a result of a check, not a bug of the checks
    """The attention raised an error or does not support a call; the message says what happened."""


@contextmanager
def errors_as_refused() -> Iterator[None]:
    """Convert errors of the attention and `SystemExit` to `Refused`, with a one-line message."""
    try:
        yield
    except Refused:
        raise
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())[:200]
        raise Refused(f"raised {type(error).__name__}: {message}") from error
