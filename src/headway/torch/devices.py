"""What the machine has: its accelerator, and its number formats."""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch

from headway.training.settings import TrainingConfig

NAMES = ("cuda", "mps", "cpu")  # the best first

# Floating-point operations a second that a small model reaches, in order of magnitude; compiling
# takes up to a minute and gains a tenth or more, so a run of ten minutes repays it.
_SPEED = {"cuda": 1e14, "mps": 3e12, "cpu": 1e11}
_LONG = 600.0  # seconds


def choose(name: str | None = None) -> torch.device:
    """The device of this name, by default the best that there is.

    Raises ValueError for an unknown name and for a device that this machine has not.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["cpu"] = True
    if name is None:
        name = next(each for each in NAMES if there[each])
    if name not in NAMES:
        raise ValueError(f"a device is one of {', '.join(NAMES)}: {name!r} is not")
    if not there[name]:
        raise ValueError(f"this machine has no {name}: leave --device out")
    return torch.device(name)


def suited(
    parameters: int, tokens: int, training: TrainingConfig, device: torch.device
) -> TrainingConfig:
    """The settings, with those that depend on the machine decided.

    parameters: of the model. tokens: of all steps. bfloat16 where the hardware multiplies it faster than float32; torch.compile where the run is
    long enough and there is a compiler. A token costs 6 operations a parameter, forward and
    backward (Kaplan et al. 2020).
    """
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    long = 6.0 * parameters * tokens > _SPEED[device.type] * _LONG
    compiler = device.type != "cpu" or shutil.which("g++") is not None
    return replace(
        training,
        precision=training.precision or ("bfloat16" if fast else "float32"),
        compile=long and compiler if training.compile is None else training.compile,
    )
