"""Errors of the attention that is checked, as one exception."""

from collections.abc import Iterator
from contextlib import contextmanager


class Refused(Exception):  # noqa: N818 - a result of a check, not a bug of the checks
    """The attention raised an error, or does not support a call; the message says which."""


@contextmanager
def errors_as_refused() -> Iterator[None]:
    """Turn every error of the attention, also an exit, into `Refused` with one line."""
    try:
        yield
    except Refused:
        raise
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())[:200]
        raise Refused(f"raised {type(error).__name__}: {message}") from error
