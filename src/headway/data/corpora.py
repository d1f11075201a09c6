"""Text to learn from: the Python manual, two public texts, or the user's own."""

from __future__ import annotations

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

# What a folder is searched for.
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".tex", ".csv", ".tsv", ".html", ".json")


class Public(NamedTuple):
    """A text that is in the public domain and can be had from its public home."""

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
    """The topics of the Python manual that comes with every Python, about 470,000 characters."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def read(source: str = "manual") -> str:
    """The text of a corpus (manual, shakespeare, verdict), a file, or all text below a folder.

    Raises ValueError, saying what to do, when there is no such file, no text in it, or it is not
    UTF-8; OSError when a public text can be neither found nor fetched.
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
                f"no text in the folder {source}: looked for {', '.join(TEXT_SUFFIXES)}"
            )
    elif path.is_file():
        files = [path]
    else:
        near = get_close_matches(source, ("manual", *PUBLIC), n=1)
        hint = f"did you mean {near[0]}?" if near else "give a path, or manual or shakespeare"
        raise ValueError(f"no file or folder {source}: {hint}")
    text = "\n\n".join(read_file(file) for file in files)
    if not text.strip():
        raise ValueError(f"{source} is empty: give a file with text")
    return text


def _public(name: str) -> Path:
    """The file of a public text: from the cache, from $HEADWAY_DATA, or fetched once."""
    public = PUBLIC[name]
    kept: Path = cache.folder("texts") / f"{name}.txt"
    given = os.environ.get("HEADWAY_DATA")
    elsewhere = sorted(Path(given).rglob("*")) if given else []
    for file in [kept, *elsewhere]:
        if file.is_file() and file.stat().st_size == public.size and _is(file, public.sha256):
            return file
    try:
        with urllib.request.urlopen(public.url, timeout=30) as answer:
            content = answer.read(public.size + 1)
    except OSError as error:
        raise OSError(
            f"{name} could not be fetched from {public.url} ({error}): get that file elsewhere and "
            "set HEADWAY_DATA to the folder that holds it"
        ) from error
    if hashlib.sha256(content).hexdigest() != public.sha256:
        raise OSError(f"what {public.url} sent is not {name}: its SHA-256 is another")
    with cache.whole(kept) as aside:
        aside.write_bytes(content)
    return kept


def _is(file: Path, sha256: str) -> bool:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == sha256


def read_file(file: Path) -> str:
    """The text of a file. Raises ValueError when it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}): convert it") from error
