"""Arrays of NumPy, PyTorch and JAX, through one namespace."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from array_api_compat import array_namespace

Array = Any  # an array of any engine; jaxtyping's shape strings say the rest

_namespaces: dict[type, Any] = {}


def namespace(array: Array) -> Any:
    """The array API namespace of this array's engine.

    Kept per type: the look-up is then fast, and torch.compile sees a constant.
    """
    kind = type(array)
    if kind not in _namespaces:
        _namespaces[kind] = array_namespace(array)
    return _namespaces[kind]


def device(array: Array) -> Any:
    """Where an array lives; None for JAX's tracers, which are nowhere yet."""
    return getattr(array, "device", None)


def integers(count: int, like: Array) -> Array:
    """0, 1 ... count - 1 as int32 where `like` lives. int32 is what all three engines share."""
    xp = namespace(like)
    return xp.arange(count, dtype=xp.int32, device=device(like))


def engine(array: Array) -> str:
    """The library that an array is of: "numpy", "torch" or "jax"."""
    for name, kind in (("torch", "Tensor"), ("jax", "Array")):
        library = sys.modules.get(name)
        if library is not None and isinstance(array, getattr(library, kind)):
            return name
    return "numpy"


def widened(array: Array) -> Array:
    """The array in float32 if its numbers have 16 bits, else as it is."""
    xp = namespace(array)
    return xp.astype(array, xp.result_type(array.dtype, xp.float32), copy=False)


def as_numpy(value: Array) -> np.ndarray:
    """An array of any engine as NumPy's, wherever it lives; one of bfloat16 as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() and value.itemsize < 4 else value
    array = np.asarray(value)
    return array.astype(np.float32) if array.itemsize == 2 else array
