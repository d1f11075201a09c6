"""Text to learn from: the Python manual, which is already on the machine, or the user's own."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

# What a folder is searched for.
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".tex", ".csv", ".tsv", ".html", ".json")


def manual() -> str:
    """The topics of the Python manual that comes with every Python, about 470,000 characters."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def read(source: str | None = None) -> str:
    """The text of a file, or of all text files below a folder, by name; by default the manual.

    Raises ValueError, saying what to do, when there is no such file, no text in it, or it is not
    UTF-8.
    """
    if source is None or source == "manual":
        return manual()
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
        raise ValueError(f"no file or folder {source}: give a path, or nothing for Python's manual")
    text = "\n\n".join(_text(file) for file in files)
    if not text.strip():
        raise ValueError(f"{source} is empty: give a file with text")
    return text


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}): convert it") from error
