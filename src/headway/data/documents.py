"""Documents of .txt, .jsonl and .parquet files, compressed or not, read piece by piece."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from headway.data import corpora
from headway.data.corpora import TEXT_SUFFIXES
from headway.extras import require

COMPRESSED = (".gz", ".zst")
FORMATS = (".jsonl", ".parquet")
FIELD = "text"  # the name of the text in a line of .jsonl, and of the column in .parquet

PLAIN = 100_000_000  # bytes; more plain text than this is not read at once
LARGEST = 1 << 20  # characters; a longer document is read in parts

# Where a long document is cut. Tokenizers that split a text as GPT-2's does, or Llama 3's, give the
# same tokens for the two sides alone.
_AFTER_WORD = re.compile(r"(?<=[^\W\d_])(?=\s)")
_NEAR = 1 << 16  # characters in which such a place is looked for


class Part(NamedTuple):
    """A document, or a part of one with more than LARGEST characters.

    is_first, is_last: whether the document begins and ends with this part. position: how many bytes
    of its file have been read.
    """

    text: str
    is_first: bool
    is_last: bool
    position: int


def files_of(source: str) -> list[Path]:
    """Return the files of a corpus of documents, sorted; none if the source is one plain text.

    A file or a folder is a corpus if a file is .jsonl, .parquet or compressed, or if the plain text
    is larger than PLAIN.
    """
    path = Path(source)
    if source == "manual" or source in corpora.PUBLIC:
        return []
    if path.is_file():
        files = [path]
    else:
        files = sorted(file for file in path.rglob("*") if _is_read(file) and file.is_file())
    is_plain = not any(file.suffix in (*COMPRESSED, *FORMATS) for file in files)
    return [] if is_plain and sum(file.stat().st_size for file in files) <= PLAIN else files


def parts(file: Path) -> Iterator[Part]:
    """Yield the documents of a file that are not empty.

    Raises ValueError if the file is damaged or not UTF-8, if a line or a row has no text, and if
    the extra that reads the file is not installed.
    """
    with file.open("rb") as raw:
        try:
            for document in _documents(file, raw):
                for text, is_first, is_last in _cut(document.read):
                    yield Part(text, is_first, is_last, raw.tell())
        except UnicodeDecodeError as error:
            why = error.reason
            raise ValueError(f"{file} is not UTF-8 ({why}): convert it to UTF-8") from error
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file} is damaged ({error}): download or write it again") from error


def _is_read(file: Path) -> bool:
    """Whether a file of a folder is part of the corpus."""
    kind, compression = _kind(file)
    return kind in (*TEXT_SUFFIXES, ".jsonl") or (kind == ".parquet" and not compression)


def _kind(file: Path) -> tuple[str, str]:
    """Return the suffixes of the format and of the compression."""
    compression = file.suffix if file.suffix in COMPRESSED else ""
    return Path(file.name.removesuffix(compression)).suffix, compression


def _documents(file: Path, raw: BinaryIO) -> Iterator[io.TextIOBase]:
    kind, compression = _kind(file)
    if kind == ".parquet":
        yield from map(_stream, _rows(file, raw))
    elif kind == ".jsonl":
        for number, line in enumerate(_decompressed(file, raw, compression), 1):
            if line.strip():
                yield _stream(_text_of(line, f"{file}, line {number}"))
    else:
        yield io.TextIOWrapper(_decompressed(file, raw, compression), encoding="utf-8-sig")


def _stream(text: str) -> io.StringIO:
    return io.StringIO(text, newline="")


def _decompressed(file: Path, raw: BinaryIO, compression: str) -> Any:
    """Return a buffered stream of the bytes of a file."""
    if compression == ".gz":
        return gzip.open(raw)
    if compression == ".zst":
        require("data", f"reading {file}")
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd"))
    return raw


def _text_of(line: bytes, where: str) -> str:
    """Return the text of a line of .jsonl."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is not valid JSON ({error}): write one object per line"
        ) from error
    return _checked(value.get(FIELD) if isinstance(value, dict) else None, where)


def _rows(file: Path, raw: BinaryIO) -> Iterator[str]:
    """Yield the texts of a .parquet file."""
    require("data", f"reading {file}")
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        table = parquet.ParquetFile(raw, buffer_size=1 << 20)
        if FIELD not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise ValueError(f"{file} has no column {FIELD!r} (it has {names}): rename the column")
        for batch in table.iter_batches(batch_size=64, columns=[FIELD], use_threads=False):
            for text in batch.column(0).to_pylist():
                number += 1
                yield _checked(text, f"{file}, row {number}")
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file} is damaged ({error}): download or write it again") from error


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str):
        got = "nothing" if text is None else type(text).__name__
        raise ValueError(f"{where} has no text: {FIELD!r} must be a string (got {got})")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is invalid Unicode: it has half of a surrogate pair") from error
    return text


def _cut(read: Callable[[int], str]) -> Iterator[tuple[str, bool, bool]]:
    """Yield the parts of a document, with whether each is the first and the last."""
    text, is_first = read(LARGEST + 1), True
    while len(text) > LARGEST:
        ends = [match.start() for match in _AFTER_WORD.finditer(text, LARGEST - _NEAR, LARGEST)]
        end = ends[-1] if ends else LARGEST
        yield text[:end], is_first, False
        text, is_first = text[end:] + read(LARGEST + 1 - (len(text) - end)), False
    if text:
        yield text, is_first, True
