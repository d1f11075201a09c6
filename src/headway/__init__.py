"""Headway: attention, from one dot product to a GPT that you trained.

Importing it loads neither PyTorch nor JAX, and a name only when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.kernels.api import attend, explain, weights
    from headway.kernels.call import Unsupported
    from headway.parts.masks import Mask
    from headway.tracing import edit, tap, trace

__all__ = ["Mask", "Unsupported", "attend", "edit", "explain", "tap", "trace", "weights"]

_HOMES = {
    "headway.kernels.api": ("attend", "explain", "weights"),
    "headway.kernels.call": ("Unsupported",),
    "headway.parts.masks": ("Mask",),
    "headway.tracing": ("edit", "tap", "trace"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'headway' has no attribute {name!r}")
