"""Functions that work on arrays of NumPy, PyTorch and JAX alike."""

import sys
from typing import Any

import numpy as np
from array_api_compat import array_namespace

Array = Any  # an array of any engine; jaxtyping's strings give its shape

_namespaces: dict[type, Any] = {}


def namespace(array: Array) -> Any:
    """The array API namespace of this array's engine.

    Cached per type, so that the lookup is fast and a constant for torch.compile.
    """
    kind = type(array)
    if kind not in _namespaces:
        _namespaces[kind] = array_namespace(array)
    return _namespaces[kind]


def device(array: Array) -> Any:
    """The device of an array; None for JAX's tracers, which have no device."""
    return getattr(array, "device", None)


def integers(count: int, like: Array) -> Array:
    """0, 1 ... count - 1 on the device of `like`, as int32, which all three engines have."""
    xp = namespace(like)
    return xp.arange(count, dtype=xp.int32, device=device(like))


def engine(array: Array) -> str:
    """The library of an array: "numpy", "torch" or "jax"."""
    for name, kind in (("torch", "Tensor"), ("jax", "Array")):
        library = sys.modules.get(name)
        if library is not None and isinstance(array, getattr(library, kind)):
            return name
    return "numpy"


def widened(array: Array) -> Array:
    """Convert an array of 16-bit numbers to float32; return any other array unchanged."""
    xp = namespace(array)
    return xp.astype(array, xp.result_type(array.dtype, xp.float32), copy=False)


def as_numpy(value: Array) -> np.ndarray:
    """Convert an array of any engine and device to NumPy; bfloat16 becomes float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() and value.itemsize < 4 else value
    array = np.asarray(value)
    return array.astype(np.float32) if array.itemsize == 2 else array
