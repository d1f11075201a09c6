"""Texts to train on: the Python manual, two public texts, or the user's files."""

import hashlib
import os
import pydoc_data.topics
import urllib.request
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from headway import cache

# The files that are read in a folder.
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".tex", ".csv", ".tsv", ".html", ".json")


class Public(NamedTuple):
    """A text in the public domain and where to download it."""

    url: str
    size: int  # bytes
    sha256: str


PUBLIC: Mapping[str, Public] = MappingProxyType(
    {
        "shakespeare": Public(
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            1_115_394,
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
        "verdict": Public(
            "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
            20_479,
            "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        ),
    }
)


def manual() -> str:
    """Return the topics of the Python manual: about 470,000 characters, from `pydoc_data`."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def read(source: str = "manual") -> str:
    """Return a text by name ("manual" or a key of PUBLIC), or of a file, or of a folder's files.

    Raises ValueError if the text is not found, empty or not UTF-8; OSError if a public text cannot
    be downloaded.
    """
    if source == "manual":
        return manual()
    if source in PUBLIC:
        return read_file(_public(source))
    path = Path(source)
    if path.is_dir():
        files = sorted(
            file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file()
        )
        if not files:
            raise ValueError(
                f"the folder {source} has no text files (accepted: {', '.join(TEXT_SUFFIXES)})"
            )
    elif path.is_file():
        files = [path]
    else:
        names = ("manual", *PUBLIC)
        near = get_close_matches(source, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"available: {', '.join(names)}"
        raise ValueError(f"text {source!r} not found: it is neither a file nor a folder; {hint}")
    text = "\n\n".join(read_file(file) for file in files)
    if not text.strip():
        raise ValueError(f"{source} has no text: choose another file")
    return text


def _public(name: str) -> Path:
    """Return the file of a public text from the cache or $HEADWAY_DATA; if absent, download it."""
    public = PUBLIC[name]
    cached: Path = cache.writable("texts", f"{name}.txt")
    folder = os.environ.get("HEADWAY_DATA")
    local = sorted(Path(folder).rglob("*")) if folder else []
    for file in [cached, *local]:
        same_size = file.is_file() and file.stat().st_size == public.size
        if same_size and cache.sha256(file) == public.sha256:
            return file
    try:
        with urllib.request.urlopen(public.url, timeout=30) as response:
            content = response.read(public.size + 1)
    except OSError as error:
        raise OSError(
            f"cannot download {name} from {public.url} ({error}): put the file into a folder and "
            "set HEADWAY_DATA to that folder"
        ) from error
    if hashlib.sha256(content).hexdigest() != public.sha256:
        raise OSError(f"the file at {public.url} has changed: its SHA-256 is not that of {name}")
    with cache.atomic(cached) as temporary:
        temporary.write_bytes(content)
    return cached


def read_file(file: Path) -> str:
    """Return the text of a file without a byte order mark. Raises ValueError if it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 (at byte {error.start}): convert it to UTF-8"
        ) from error
