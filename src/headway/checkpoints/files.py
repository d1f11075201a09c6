"""Checkpoints: each in a directory of its own, written aside, flushed, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

Tensors = Mapping[str, np.ndarray]


def save(folder: Path, step: int, tensors: Tensors, about: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step and return its directory; nothing is overwritten in place.

    about: what else to say, one metadata key of sorted JSON, so equal content is equal bytes.
    """
    final = folder / f"step-{step:06d}"
    aside = folder / f".writing-{final.name}"
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    aside.mkdir(parents=True)
    file = aside / "model.safetensors"
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(whole, file, metadata={"headway": json.dumps(about, sort_keys=True)})
    _flush(file)
    _flush(aside)
    aside.rename(final)
    _flush(folder)
    return final


def latest(folder: Path) -> Path:
    """The checkpoint of the last step. Raises ValueError when there is none."""
    found = [file.parent for file in folder.glob("step-*/model.safetensors")]
    if not found:
        raise ValueError(f"no checkpoint in {folder}: the run saved none")
    return max(found, key=lambda checkpoint: int(checkpoint.name.removeprefix("step-")))


def load(checkpoint: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint. Raises ValueError when the file is damaged."""
    file = checkpoint / "model.safetensors"
    try:
        tensors: dict[str, np.ndarray] = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return tensors


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
