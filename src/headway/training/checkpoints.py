"""Checkpoints: each is written to a new directory, flushed to the disk, then renamed.

step-000500/model.safetensors  optimizer.safetensors  SHA256SUMS (for `sha256sum --check`)

If N processes train together, each of them writes the rows that it has to files of its own, such as
model-00001-of-0000N.safetensors, with the number of the first row in the metadata. The format is
that of PyTorch's `torch.distributed.checkpoint.HuggingFaceStorageWriter`, whose reader reads it.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from headway import cache
from headway.training.processes import ALONE, Processes, together

_SUMS = "SHA256SUMS"
_ABOUT = "headway"  # the name of the metadata
_FIRST_ROWS, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"  # the names that PyTorch uses


class Rows(NamedTuple):
    """The rows of an array that a process has; the other processes have the others.

    first: the number of the first row in the complete array.
    """

    first: int
    values: np.ndarray


Tensors = Mapping[str, np.ndarray | Rows]


def save(
    folder: Path,
    step: int,
    parts: Mapping[str, Tensors],
    about: Mapping[str, Any],
    processes: Processes = ALONE,
) -> Path:
    """Write the checkpoint of a step and return its directory; no file is overwritten in place.

    parts: tensors by file ("model", "optimizer") and name; every process writes its own.
    about: metadata, stored as sorted JSON under one key, so that equal content gives equal bytes.
    Raises OSError, and leaves the earlier checkpoints as they are, when the disk is full or not
    writable. The directory is renamed when every process has written its files.
    """
    final = folder / name(step)
    temporary = folder / f".writing-{final.name}"
    is_first, sums = processes.rank == 0, ""

    def prepare() -> None:
        if is_first:
            shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
            temporary.mkdir(parents=True)

    def write() -> str:
        if not temporary.is_dir():
            raise OSError(
                "process 0 has made its folder, but it is not here: all machines must "
                "share the disk of the runs"
            )
        files = [
            _write(temporary, part, tensors, about, processes) for part, tensors in parts.items()
        ]
        return "".join(f"{cache.sha256(file)}  {file.name}\n" for file in files)

    def publish() -> None:
        if is_first:
            (temporary / _SUMS).write_text(sums, encoding="utf-8")
            _flush(temporary / _SUMS)
            _flush(temporary)
            temporary.rename(final)
            _flush(folder)

    try:
        together(processes, prepare)
        lines = "".join(processes.exchange(together(processes, write))).splitlines(keepends=True)
        sums = "".join(sorted(lines, key=lambda line: line.split()[-1]))
        together(processes, publish)
    except (OSError, ValueError) as error:
        if is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"cannot write the checkpoint {final}: {reason}; the earlier checkpoints are intact, "
            "so free some space and continue with --resume"
        ) from error
    return final


def _write(
    folder: Path, part: str, tensors: Tensors, about: Mapping[str, Any], processes: Processes
) -> Path:
    """Write the tensors of this process to a file, flush it and return it."""
    metadata = {_ABOUT: json.dumps(about, sort_keys=True)}
    file = folder / f"{part}.safetensors"
    if processes.count > 1:
        file = folder / f"{part}-{processes.rank + 1:05}-of-{processes.count:05}.safetensors"
        offsets = {
            key: {_OFFSETS: [rows.first] + [0] * (rows.values.ndim - 1)}
            for key, rows in tensors.items()
            if isinstance(rows, Rows)
        }
        # Safetensors writes several keys in a random order, so there is only one here, too.
        metadata = {_FIRST_ROWS: json.dumps({_ABOUT: about, **offsets}, sort_keys=True)}
    arrays = {key: x.values if isinstance(x, Rows) else x for key, x in tensors.items()}
    try:
        save_file(
            {key: np.ascontiguousarray(array) for key, array in arrays.items()}, file, metadata
        )
    except SafetensorError as error:
        raise OSError(str(error)) from error
    _flush(file)
    return file


def name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:06d}"


def keep(folder: Path, most: int) -> None:
    """Remove all checkpoints except the last `most`; each is renamed before it is removed."""
    for old in complete(folder)[:-most]:
        temporary = folder / f".removing-{old.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        old.rename(temporary)
    for left in folder.glob(".*-step-*"):  # including those that killed processes left
        shutil.rmtree(left, ignore_errors=True)


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a folder, ordered by step."""
    return sorted(folder.glob("step-[0-9]*/"), key=step_of)


def latest(folder: Path) -> Path:
    """The checkpoint of the last step. Raises ValueError when there is none."""
    all_steps = complete(folder)
    if not all_steps:
        raise ValueError(f"no checkpoint in {folder}; the run did not save one")
    return all_steps[-1]


@final
class Stored(Mapping[str, np.ndarray]):
    """The tensors of the files of one part, by name; each is read when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [safe_open(file, "numpy") for file in files]
        self._holding: dict[str, list[Any]] = {}
        for file in self._files:
            for key in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118
                self._holding.setdefault(key, []).append(file)

    def __getitem__(self, key: str) -> np.ndarray:
        pieces = [file.get_tensor(key) for file in self._holding[key]]
        whole: np.ndarray = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._holding)

    def __len__(self) -> int:
        return len(self._holding)

    @property
    def about(self) -> dict[str, Any]:
        """The metadata that `save` was given."""
        metadata = self._files[0].metadata()  # type: ignore[no-untyped-call]
        about: dict[str, Any] = (
            json.loads(metadata[_ABOUT])
            if _ABOUT in metadata
            else json.loads(metadata[_FIRST_ROWS])[_ABOUT]
        )
        return about


def load(checkpoint: Path, part: str = "model") -> tuple[Stored, dict[str, Any]]:
    """Load the tensors of a part of a checkpoint, and its metadata.

    Raises ValueError if a file is missing or damaged; the message names the previous checkpoint.
    """
    file = checkpoint / f"{part}.safetensors"
    try:
        sums = (checkpoint / _SUMS).read_text(encoding="utf-8").splitlines()
        pattern = re.compile(rf"\w{{64}}  {part}(-\d+-of-\d+)?\.safetensors")
        listed = [line.partition("  ") for line in sums if pattern.fullmatch(line)]
        if not listed:
            raise ValueError("it is not in SHA256SUMS")
        for digest, _, file_name in listed:
            file = checkpoint / file_name
            if cache.sha256(file) != digest:
                raise ValueError("its SHA-256 differs from SHA256SUMS")
        stored = Stored([checkpoint / file_name for _, _, file_name in listed])
        return stored, stored.about
    except (ValueError, FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{file} is damaged ({error}){_before(checkpoint)}") from error


def _before(checkpoint: Path) -> str:
    step = step_of(checkpoint)
    earlier = [path for path in complete(checkpoint.parent) if step_of(path) < step]
    if not earlier:
        return "; there is no earlier checkpoint: start a new run"
    return f"; remove the folder {checkpoint.name} to resume from {earlier[-1].name}"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
