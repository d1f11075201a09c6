"""A corpus of documents: tokenized once, by all cores, into files of tokens in Headway's cache.

tokens/KEY/manifest.json  000000.bin  000001.bin ...; shards.jsonl while they are written
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain, islice, repeat
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple, final

import numpy as np

from headway import cache
from headway.data import encoding
from headway.data.batches import where_to_cut
from headway.data.documents import LARGEST, parts
from headway.data.encoding import HELD_OUT, Encoded, Unit, dtype_of
from headway.data.files import File, sha256_of
from headway.data.shards import Shards
from headway.data.tokenizers import Tokenizer, digest

SHARD = 1 << 26  # a shard ends after this many tokens
SAMPLE = 10_000_000  # characters from which a tokenizer is learned
_SAMPLED = 64  # maximum number of files in the sample

# Increase it when the tokens of a corpus change, so that cached tokens are not used.
_VERSION = 1
_MANIFEST, _JOURNAL = "manifest.json", "shards.jsonl"

# An entry of the manifest. file, sha256, modified: the file and the time of its last change.
# documents: how many end in it. units: for each, the number of its tokens, and how many of them are
# held out for each number in HELD_OUT.
Shard = dict[str, Any]
Show = Callable[[int, int], object]  # called with the number of new bytes, and of all


@final
class Corpus:
    """The documents of one or more files."""

    def __init__(self, files: list[File]) -> None:
        self.files, self.sha256 = files, sha256_of(files)

    def sample(self) -> str:
        """Return 10 million characters: the beginning of up to 64 files, evenly spaced."""
        spaced = np.linspace(0, len(self.files) - 1, min(_SAMPLED, len(self.files)))
        texts = list[str]()
        for index in spaced.astype(int):
            left = SAMPLE // len(spaced)
            for part in parts(Path(self.files[index].path)):
                texts.append(part.text[:left])
                left -= len(texts[-1])
                if not left:
                    break
        return "\n".join(texts)

    def characters(self) -> str:
        """Return the characters that occur in the corpus, sorted."""
        known = set[str]()
        for file in self.files:
            for part in parts(Path(file.path)):
                known.update(part.text)
        return "".join(sorted(known))

    def tokens(self, tokenizer: Tokenizer, end: int, show: Show) -> Stored:
        """Return the tokens from the cache; write them first if they are not there.

        end: the token after each document. A damaged or missing shard is written again, and work
        that was interrupted continues at the shard where it stopped. Raises ValueError for invalid
        documents, and OSError if the disk is full.
        """
        key = digest(f"{_VERSION} {self.sha256} {tokenizer.fingerprint} {end}")
        folder = cache.writable("tokens", f"{key}/{_MANIFEST}").parent
        shards = _complete(folder)
        if shards is None:
            folder.mkdir(exist_ok=True)
            with cache.locked(folder):
                shards = _complete(folder) or self._prepare(folder, tokenizer, end, show)
        return Stored(folder, shards, dtype_of(tokenizer))

    def _prepare(self, folder: Path, tokenizer: Tokenizer, end: int, show: Show) -> list[Shard]:
        """Write the shards that are not in the folder, and then the manifest."""
        shards = _listed(folder)
        with cache.atomic(folder / _JOURNAL) as temporary:
            temporary.write_text("".join(map(_line, shards)), encoding="utf-8")
        (folder / _MANIFEST).unlink(missing_ok=True)
        for incomplete in folder.glob(".*.bin"):  # of a process that was killed
            incomplete.unlink()
        file = folder / "tokenizer.json"
        with cache.atomic(file) as temporary:
            tokenizer.save(temporary)
        damaged = [n for n, shard in enumerate(shards) if not _is_intact(folder, shard)]
        for number in damaged:
            name = folder / shards[number]["file"]
            warnings.warn(f"{name} is damaged or missing: it is written again", stacklevel=2)
        # For each unit, whether its shard must be written.
        listed = [number in damaged for number, s in enumerate(shards) for _ in s["units"]]
        known = chain(listed, repeat(True))
        total = sum(source.size for source in self.files)
        positions, shown = deque[int](), 0

        def missing() -> Iterator[Unit]:
            """Yield the units of shards that must be written; the others are read only."""
            units = self._units()
            for is_missing, (unit, position) in zip(known, units, strict=False):
                if is_missing:
                    positions.append(position)
                    yield unit

        def shown_units(units: Iterable[Encoded]) -> Iterator[Encoded]:
            nonlocal shown
            for unit in units:
                position = positions.popleft()
                show(position - shown, total)
                shown = position
                yield unit

        processes = min(_cores(), 1 + total // LARGEST)
        try:
            encoded = encoding.encoded_units(missing(), tokenizer, file, end, processes)
            with closing(encoded) as units:
                ready = shown_units(units)
                for number in damaged:
                    size = len(shards[number]["units"])
                    shards[number] = _written(folder, number, islice(ready, size))
                for first in ready:
                    shards.append(_written(folder, len(shards), chain([first], ready)))
            for source in self.files:
                source.require_unchanged()
        except ValueError:  # other files are needed, or another tokenizer
            rmtree(folder, ignore_errors=True)
            raise
        about = {"version": _VERSION, "text_sha256": self.sha256, "end_token": end}
        about |= {"tokenizer_sha256": tokenizer.fingerprint, "dtype": dtype_of(tokenizer)}
        about |= {"held_out": HELD_OUT, "files": [file._asdict() for file in self.files]}
        _write_manifest(folder, {**about, "shards": shards})
        (folder / _JOURNAL).unlink()
        return shards

    def _units(self) -> Iterator[tuple[Unit, int]]:
        """Yield the documents in units, each with the number of bytes that have been read.

        The parts of a document that is not read at once are units of their own.
        """
        unit, size, before = list[tuple[str, bool]](), 0, 0
        for file in self.files:
            for part in parts(Path(file.path)):
                position = before + part.position
                is_whole = part.is_first and part.is_last
                if unit and (size + len(part.text) > LARGEST or not is_whole):
                    yield unit, position
                    unit, size = [], 0
                if is_whole:
                    unit.append((part.text, True))
                    size += len(part.text)
                else:
                    yield [(part.text, part.is_last)], position
            before += file.size
        if unit:
            yield unit, before


class Stored(NamedTuple):
    """The tokens of a corpus in the cache."""

    folder: Path
    shards: list[Shard]
    dtype: str

    def split(self, context: int) -> tuple[Shards, Shards, str]:
        """Return the training data, the held-out data, and a description of the latter.

        One document in 100 is held out, chosen by its SHA-256, or one in 50, 20, 10, 5 or 2, if
        the documents are so few that they have no window; of a single document, the last tenth.
        Raises ValueError if either part has fewer tokens than context + 1.
        """
        units = list[tuple[np.ndarray, list[int]]]()
        for shard in self.shards:
            tokens = np.asarray(np.memmap(self.folder / shard["file"], self.dtype, mode="r"))
            ends = np.cumsum([size for size, *_ in shard["units"]])
            rows = (held_out for _, *held_out in shard["units"])
            units += zip(np.split(tokens, ends[:-1]), rows, strict=True)
        total = sum(len(tokens) for tokens, _ in units)
        for column, one_in in enumerate(HELD_OUT):
            cuts = [held_out[column] for _, held_out in units]
            if context < sum(cuts) < total - context:
                pairs = [(tokens, n) for (tokens, _), n in zip(units, cuts, strict=True)]
                train, validation = ([t[n:] for t, n in pairs], [t[:n] for t, n in pairs])
                return Shards(train), Shards(validation), f"one document in {one_in}"
        everything = Shards([tokens for tokens, _ in units])
        return *everything.split(where_to_cut(total, context)), "the last tenth"


def _cores() -> int:
    known = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _written(folder: Path, number: int, units: Iterable[Encoded]) -> Shard:
    """Write a shard of the next units and add it to the journal."""
    file, sha256 = folder / f"{number:06}.bin", hashlib.sha256()
    counts, documents, size = [], 0, 0
    with cache.atomic(file) as temporary, temporary.open("wb") as out:
        for unit in units:
            out.write(unit.content)
            sha256.update(unit.content)
            counts.append([unit.tokens, *unit.held_out])
            documents, size = documents + unit.documents, size + unit.tokens
            if size >= SHARD:
                break
        out.flush()
        os.fsync(out.fileno())
    shard = {"file": file.name, "size": file.stat().st_size, "sha256": sha256.hexdigest()}
    shard |= {"modified": file.stat().st_mtime_ns, "documents": documents, "units": counts}
    with (folder / _JOURNAL).open("a", encoding="utf-8") as journal:
        journal.write(_line(shard))
    return shard


def _complete(folder: Path) -> list[Shard] | None:
    """Return the shards of a folder if there is a manifest and all of them are intact.

    The SHA-256 is computed only if the time of change of a file is not that of the manifest.
    """
    if not (folder / _MANIFEST).is_file():
        return None
    manifest = _read_manifest(folder)
    before = [shard["modified"] for shard in manifest["shards"]]
    if not all(_is_intact(folder, shard) for shard in manifest["shards"]):
        return None
    if before != [shard["modified"] for shard in manifest["shards"]]:
        with suppress(OSError):  # a cache that is not writable
            _write_manifest(folder, manifest)
    shards: list[Shard] = manifest["shards"]
    return shards


def _is_intact(folder: Path, shard: Shard) -> bool:
    """Whether the file of a shard is unchanged; sets its time of change if its SHA-256 is right."""
    file = folder / shard["file"]
    if not file.is_file() or file.stat().st_size != shard["size"]:
        return False
    modified = file.stat().st_mtime_ns
    if modified != shard["modified"] and cache.sha256(file) == shard["sha256"]:
        shard["modified"] = modified
    return bool(modified == shard["modified"])


def _listed(folder: Path) -> list[Shard]:
    """Return the shards of the journal or else of the manifest, intact or not."""
    if not (folder / _JOURNAL).is_file():
        return _read_manifest(folder)["shards"] if (folder / _MANIFEST).is_file() else []
    lines = (folder / _JOURNAL).read_text(encoding="utf-8").split("\n")[:-1]
    shards = {shard["file"]: shard for shard in map(json.loads, lines)}  # the last one counts
    return [shards[name] for name in sorted(shards)]


def _line(shard: Shard) -> str:
    return json.dumps(shard) + "\n"


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    with cache.atomic(folder / _MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest) + "\n", encoding="utf-8")
