"""Choose the device, the precision and whether to compile, from what the machine supports."""

import shutil
from dataclasses import replace

import torch

from headway.training.settings import TrainingConfig

NAMES = ("cuda", "mps", "cpu")  # fastest first

# Floating-point operations per second that a small model reaches (order of magnitude). Compiling
# takes up to a minute and saves a tenth of the time or more, so it pays off after ten minutes.
_SPEED = {"cuda": 1e14, "mps": 3e12, "cpu": 1e11}
_LONG = 600.0  # seconds


def choose(name: str | None = None) -> torch.device:
    """Return the device with this name, by default the fastest one available.

    Raises ValueError if the name is unknown or this machine does not have the device.
    """
    is_here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available = [known for known in NAMES if is_here.get(known, True)]
    name = available[0] if name is None else name
    if name not in NAMES:
        raise ValueError(f"device must be one of {', '.join(NAMES)} (got {name!r})")
    if name not in available:
        raise ValueError(f"this machine has no {name}; available devices: {', '.join(available)}")
    return torch.device(name)


def suited(
    parameters: int, tokens: int, training: TrainingConfig, device: torch.device
) -> TrainingConfig:
    """Return the settings with defaults for precision and compilation chosen for this machine.

    parameters: the number of parameters of the model. tokens: the number of tokens in all steps.
    The precision is bfloat16 if the hardware multiplies it faster than float32. torch.compile is
    used if the run is long enough and a compiler is installed. A token costs 6 operations per
    parameter, forward and backward (Kaplan et al. 2020).
    """
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    is_long = 6.0 * parameters * tokens > _SPEED[device.type] * _LONG
    has_compiler = device.type != "cpu" or shutil.which("g++") is not None
    return replace(
        training,
        precision=training.precision or ("bfloat16" if fast else "float32"),
        compile=is_long and has_compiler if training.compile is None else training.compile,
    )
