"""Checkpoints: each is written to a new directory, flushed to the disk, then renamed.

step-000500/model.safetensors  optimizer.safetensors  SHA256SUMS (for `sha256sum --check`)
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from headway import cache

Tensors = Mapping[str, np.ndarray]
_SUMS = "SHA256SUMS"


def save(folder: Path, step: int, parts: Mapping[str, Tensors], about: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step and return its directory; no file is overwritten in place.

    parts: tensors by file ("model", "optimizer") and name. about: metadata, stored as sorted JSON
    under one key, so that equal content gives equal bytes. Raises OSError, and leaves the earlier
    checkpoints as they are, when the disk is full or not writable.
    """
    final = folder / name(step)
    temporary = folder / f".writing-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        temporary.mkdir(parents=True)
        for part, tensors in parts.items():
            contiguous = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
            metadata = {"headway": json.dumps(about, sort_keys=True)}
            save_file(contiguous, temporary / f"{part}.safetensors", metadata=metadata)
        sums = "".join(
            f"{cache.sha256(file)}  {file.name}\n" for file in sorted(temporary.iterdir())
        )
        (temporary / _SUMS).write_text(sums, encoding="utf-8")
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        temporary.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"cannot write the checkpoint {final}: {reason}; the earlier checkpoints are intact, "
            "so free some space and continue with --resume"
        ) from error
    return final


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


def load(checkpoint: Path, part: str = "model") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Load the tensors of a part of a checkpoint, and its metadata.

    Raises ValueError if a file is missing or damaged; the message names the previous checkpoint.
    """
    file = checkpoint / f"{part}.safetensors"
    try:
        sums = (checkpoint / _SUMS).read_text(encoding="utf-8")
        if f"{cache.sha256(file)}  {file.name}" not in sums.splitlines():
            raise ValueError("its SHA-256 differs from SHA256SUMS")
        with safe_open(file, "numpy") as opened:
            about: dict[str, Any] = json.loads(opened.metadata()["headway"])
        return load_file(file), about
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
