"""Where fetched texts and prepared tokens are kept between runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def folder(name: str) -> Path:
    """A folder of Headway's cache: below $XDG_CACHE_HOME, by default ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    found = Path(home) / "headway" / name
    found.mkdir(parents=True, exist_ok=True)
    return found


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A name to write to; it becomes `file` when all went well, so that no half file is found."""
    aside = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        yield aside
        aside.replace(file)
    except OSError as error:
        if error.strerror:
            error.filename = str(file)  # what the caller knows, not the name aside
        raise
    finally:
        aside.unlink(missing_ok=True)
