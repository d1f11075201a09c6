"""What the machine has: its accelerator, and its number formats."""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch

from headway.training.settings import TrainingConfig

NAMES = ("cuda", "mps", "cpu")  # from best to worst

# Floating-point operations per second that a small model reaches, to an order of magnitude.
# Compiling takes up to a minute and saves a tenth or more, so a run of ten minutes repays it.
_SPEED = {"cuda": 1e14, "mps": 3e12, "cpu": 1e11}
_LONG = 600.0  # seconds


def choose(name: str | None = None) -> torch.device:
    """The device of this name, by default the best one of this machine.

    Raises ValueError for an unknown name and for a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available["cpu"] = True
    if name is None:
        name = next(device for device in NAMES if available[device])
    if name not in NAMES:
        raise ValueError(f"device must be one of {', '.join(NAMES)} (got {name!r})")
    if not available[name]:
        raise ValueError(f"this machine has no {name}; remove --device to use the best device")
    return torch.device(name)


def suited(
    parameters: int, tokens: int, training: TrainingConfig, device: torch.device
) -> TrainingConfig:
    """The settings, with those that depend on the machine decided.

    parameters: number of the model's parameters. tokens: number of all steps' tokens.
    bfloat16 where the hardware multiplies it faster than float32; torch.compile where the run is
    long enough and there is a compiler. A token costs 6 operations per parameter, forward and
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
