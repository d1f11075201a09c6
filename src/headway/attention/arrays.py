"""Functions that work on arrays of NumPy, PyTorch and JAX alike."""

import sys
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

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


def wrapping_product(x: Array, factor: int) -> Array:
    """Multiply an array of int32 by an int32, modulo 2^32.

    PyTorch compiles for a CPU as if products could not exceed 32 bits, so it gets 64 bits there.
    """
    if compiles_for_torch():
        xp = namespace(x)
        return xp.astype(xp.astype(x, xp.int64) * factor, xp.int32)
    return x * factor


def largest(x: Float[Array, "... n"], count: int) -> Float[Array, "... count"]:
    """The largest numbers along the last axis, the largest first, without sorting all of them."""
    library = engine(x)
    if library == "numpy":
        return -np.sort(np.partition(-x, count - 1)[..., :count])
    top = x.topk if library == "torch" else partial(sys.modules["jax"].lax.top_k, x)
    return top(count)[0]


def compiles_for_torch() -> bool:
    """Whether the caller is being compiled by torch.compile."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def engine(array: Array) -> str:
    """The library of an array: "numpy", "torch" or "jax"."""
    for name, kind in (("torch", "Tensor"), ("jax", "Array")):
        library = sys.modules.get(name)
        if library is not None and isinstance(array, getattr(library, kind)):
            return name
    return "numpy"


def widened(array: Array) -> Array:
    """Convert an array of 16-bit numbers to float32; return any other array unchanged."""
    return namespace(array).astype(array, wide(array), copy=False)


def wide(array: Array) -> Any:
    """The dtype of an array of floating-point numbers; float32 for 16 bits."""
    return namespace(array).float32 if array.dtype.itemsize == 2 else array.dtype


def as_numpy(value: Array) -> np.ndarray:
    """Convert an array of any engine and device to NumPy; bfloat16 becomes float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() and value.itemsize < 4 else value
    array = np.asarray(value)
    return array.astype(np.float32) if array.itemsize == 2 else array
