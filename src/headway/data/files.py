"""The files of a corpus with their SHA-256, which is kept while a file does not change."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from headway import cache
from headway.data.tokenizers import digest


class File(NamedTuple):
    """A file. modified: the time of its last change, in nanoseconds."""

    path: str
    size: int
    modified: int
    sha256: str

    def require_unchanged(self) -> None:
        """Raise ValueError if the file has changed since its SHA-256 was computed."""
        if _state(Path(self.path)) != self[:3]:
            raise ValueError(f"{self.path} has changed while it was read: start again")


def hashed(source: str, paths: Sequence[Path]) -> list[File]:
    """Return the files of a source with their SHA-256.

    A file is read only if its path, size or time of change differs from the last time; the last
    results of each source are in Headway's cache.
    """
    record = cache.writable("tokens", f"files-{digest(str(Path(source).resolve()))[:16]}.json")
    try:
        known = {(path, size, time): sha for path, size, time, sha in json.loads(_text(record))}
    except (ValueError, TypeError):  # damaged
        known = {}
    states = [_state(path.resolve()) for path in paths]
    new = [state for state in states if state not in known]
    with ThreadPoolExecutor() as pool:
        known.update(
            zip(new, pool.map(cache.sha256, (Path(path) for path, *_ in new)), strict=True)
        )
    files = [File(*state, known[state]) for state in states]
    if new:
        with cache.atomic(record) as temporary:
            temporary.write_text(json.dumps(files), encoding="utf-8")
    return files


def sha256_of(files: Sequence[File]) -> str:
    """Return the SHA-256 of the contents of files, in their order."""
    return digest("\n".join(file.sha256 for file in files))


def _state(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


def _text(record: Path) -> str:
    return record.read_text(encoding="utf-8") if record.exists() else "[]"
