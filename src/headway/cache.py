"""Headway's cache folder: downloaded texts, prepared tokens and compiled code."""

import functools
import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def folder(name: str) -> Path:
    """Create and return the folder `name` of the cache, in $XDG_CACHE_HOME (default ~/.cache)."""
    path = _home() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def path(name: str, file: str) -> Path:
    """Return the path of a file in the folder `name` of the cache; creates nothing."""
    return _home() / name / file


def writable(name: str, file: str = "") -> Path:
    """Return the folder `name` of the cache, or a file in it.

    If the folder is not writable and does not have the file, it is a temporary folder of this
    process instead; warns once.
    """
    kept = path(name, file)
    if kept.is_file():
        return kept
    try:
        with tempfile.TemporaryFile(dir=folder(name)):
            return kept
    except OSError as error:
        temporary = Path(_temporary(_home(), error.strerror).name) / name
        temporary.mkdir(exist_ok=True)
        return temporary / file


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headway"


@functools.cache
def _temporary(path: Path, reason: str) -> tempfile.TemporaryDirectory[str]:
    note = f"the cache folder {path} is not writable ({reason}); nothing is kept in it. Set "
    warnings.warn(f"{note}XDG_CACHE_HOME to another folder", stacklevel=4)
    return tempfile.TemporaryDirectory(prefix="headway-cache-")  # deleted with the process


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def atomic(file: Path) -> Iterator[Path]:
    """Yield a temporary path and rename it to `file` on success: `file` is never incomplete."""
    temporary = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        yield temporary
        temporary.replace(file)
    except OSError as error:
        if error.strerror:
            error.filename = str(file)  # the caller does not know the temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, so that two processes do not use it. Raises ValueError if another one does."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another process uses {folder}: wait until it has ended, or stop it"
            ) from None
        yield
