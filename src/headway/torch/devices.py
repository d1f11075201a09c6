"""Choose the device, the precision and whether to compile, from what the machine supports."""

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from headway.training.settings import TrainingConfig

NAMES = ("cuda", "mps", "cpu")  # fastest first

# Floating-point operations per second that a small model reaches (order of magnitude). Compiling
# takes up to a minute. It saves a fifth of the time or more on a GPU, a tenth on a CPU, so it pays
# off after so many seconds.
_SPEED = {"cuda": 1e14, "cpu": 1e11}
_LONG = {"cuda": 300.0, "cpu": 600.0}


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
    The precision is bfloat16 if the device multiplies it. torch.compile is used if the run is long
    enough and a compiler is installed, and never on MPS. A token costs 6 operations per parameter,
    forward and backward (Kaplan et al. 2020). Warns if the device lacks something or is little
    tested.
    """
    kind = device.type
    if kind == "mps":
        warnings.warn(
            "training on MPS is little tested; it uses float32 and no torch.compile", stacklevel=2
        )
    has_bfloat16 = multiplies_bfloat16(kind)
    if kind == "cuda" and not has_bfloat16 and training.precision is None:
        warnings.warn("this GPU does not support bfloat16; float32 is used", stacklevel=2)
    compiles = training.compile
    if compiles is None:
        compiles = kind != "mps" and 6.0 * parameters * tokens > _SPEED[kind] * _LONG[kind]
    if compiles and (missing := missing_for_compiling(kind)):
        if training.compile or kind == "cuda":
            warnings.warn(f"torch.compile needs {missing}; the run is not compiled", stacklevel=2)
        compiles = False
    return replace(
        training,
        precision=training.precision or ("bfloat16" if has_bfloat16 else "float32"),
        compile=compiles,
    )


def use_threads(threads: int) -> None:
    """Let PyTorch use this number of threads on the CPU. Warns if there are fewer cores."""
    cores = os.cpu_count() or 1
    if threads > cores:
        note = f"the run uses {threads} threads, as before, but this machine has {cores} cores"
        warnings.warn(f"{note}; a step takes longer", stacklevel=2)
    torch.set_num_threads(threads)


def multiplies_bfloat16(kind: str) -> bool:
    """Whether this kind of device has instructions that multiply bfloat16, on this machine.

    With them a CPU takes a quarter to a third of the time of float32 for a matrix product.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # PyTorch 2.9 has no such function.
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return kind == "cpu" and any(has.get(name) for name in ("avx512_bf16", "amx_bf16"))


def missing_for_compiling(kind: str) -> str | None:
    """What the compiler needs on this kind of device and does not find; None if it is complete."""
    if kind == "mps":
        return "another device than MPS"
    if kind == "cuda" and find_spec("triton") is None:
        return "the package triton"
    compilers = ("g++", "clang++") if kind == "cpu" else ("gcc", "cc", "clang")
    if not any(map(shutil.which, compilers)) and "CXX" not in os.environ:
        return "a C++ compiler"
    return None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled by torch.compile; if that fails, it warns, and runs as it is."""
    fast, is_broken = torch.compile(function), False

    def run(*arguments: Any) -> Any:
        nonlocal is_broken
        if not is_broken:
            try:
                # By default an error in compiling the backward pass would appear only later.
                with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                    return fast(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:
                is_broken = True
                reason = " ".join(str(error).strip().split("\n")[:2])
                note = f"torch.compile failed, so the run is not compiled: {reason}"
                warnings.warn(note, stacklevel=2)
        return function(*arguments)

    return run


def name(device: torch.device) -> str:
    """The device with the name of its model, for messages."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
