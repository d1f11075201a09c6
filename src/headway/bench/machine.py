"""The machine on which something was measured."""

import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from headway.attention.kernels.tuning import version
from headway.bench.measure import memory


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return processor, cores, threads, memory (bytes), accelerator, system, versions and date."""
    values = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": memory("MemTotal"),
        "accelerator": torch.cuda.get_device_name() if device == "cuda" else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "jax", "headway")},
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    return {name: value for name, value in values.items() if value is not None}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
