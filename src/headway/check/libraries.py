"""One interface to NumPy, PyTorch and JAX for the checks: arrays, gradients, random states."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, final

import numpy as np

from headway.check.errors import Refused

Function = Callable[..., Any]
SEED = 271828  # of the checks; unlike those that the checked code may set


class Library(Protocol):
    """An array library. A `function` takes and returns arrays of the library."""

    name: str
    precisions: tuple[str, ...]  # the supported ones that are lower than float64
    changed: set[str]  # the global settings that the checked code changed during a session

    def array(self, values: np.ndarray, dtype: str) -> Any:
        """Return values as an array of the library; only floating-point values get the dtype."""
        ...

    def bait(self, values: np.ndarray, dtype: str) -> Any:
        """Return inputs that show to which library a function belongs.

        For these inputs only functions of this library return arrays of this library.
        """
        ...

    def numpy(self, array: Any) -> np.ndarray:
        """Convert an array to NumPy; floating-point numbers become float64."""
        ...

    def is_array(self, array: Any) -> bool:
        """Whether this is an array of the library."""
        ...

    def strided(self, array: Any) -> Any:
        """Return the same values in an array that is not contiguous."""
        ...

    def expanded(self, array: Any) -> Any:
        """Return a view that repeats the first batch row."""
        ...

    def gradients(self, function: Function, inputs: Sequence[Any], weight: np.ndarray) -> list[Any]:
        """Return the gradients of sum(function(*inputs) * weight); `Refused` if it has none."""
        ...

    def compiled(self, call: Function, attention: Any, options: Mapping[str, Any]) -> Function:
        """Return call(attention, *inputs, **options), compiled if that is needed for speed."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """Return a context with the library's settings for the checks, such as float64 in JAX."""
        ...


@final
class NumPy:
    name = "numpy"
    precisions: tuple[str, ...] = ("float32",)

    def __init__(self) -> None:
        self.changed: set[str] = set()

    def array(self, values: np.ndarray, dtype: str) -> np.ndarray:
        return np.array(values, dtype=dtype if values.dtype.kind == "f" else None)

    bait = array

    def numpy(self, array: Any) -> np.ndarray:
        values = np.array(array)
        return values.astype(np.float64) if values.dtype.kind == "f" else values

    def is_array(self, array: Any) -> bool:
        return isinstance(array, np.ndarray)

    def strided(self, array: np.ndarray) -> np.ndarray:
        return np.asfortranarray(array)

    def expanded(self, array: np.ndarray) -> np.ndarray:
        return np.broadcast_to(array[:1], array.shape)

    def gradients(self, function: Function, inputs: Sequence[Any], weight: np.ndarray) -> list[Any]:
        raise Refused("NumPy has no gradients")

    def compiled(self, call: Function, attention: Any, options: Mapping[str, Any]) -> Function:
        return partial(call, attention, **options)

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()


@final
class Torch:
    name = "torch"
    precisions: tuple[str, ...] = ("float32", "bfloat16")

    def __init__(self, device: str = "cpu") -> None:
        import torch

        self.torch, self.device = torch, device
        self.changed: set[str] = set()
        try:
            torch.empty(0, device=device)
        except Exception as error:
            raise ValueError(
                f"device {device!r} is not available in PyTorch; use for example 'cpu': {error}"
            ) from None

    def array(self, values: np.ndarray, dtype: str) -> Any:
        kind = getattr(self.torch, dtype) if values.dtype.kind == "f" else None
        return self.torch.tensor(values, dtype=kind, device=self.device)

    def bait(self, values: np.ndarray, dtype: str) -> Any:
        # NumPy functions accept tensors, but not those that require gradients.
        tensor = self.array(values, dtype)
        return tensor.requires_grad_() if tensor.is_floating_point() else tensor

    def numpy(self, array: Any) -> np.ndarray:
        wide = array.double() if array.is_floating_point() else array
        return np.array(wide.numpy(force=True))

    def is_array(self, array: Any) -> bool:
        return isinstance(array, self.torch.Tensor)

    def strided(self, array: Any) -> Any:
        axes = tuple(range(array.ndim))[::-1]
        return array.permute(axes).contiguous().permute(axes)

    def expanded(self, array: Any) -> Any:
        return array[:1].expand_as(array)

    def gradients(self, function: Function, inputs: Sequence[Any], weight: np.ndarray) -> list[Any]:
        with self.torch.enable_grad():
            leaves = [array.detach().requires_grad_() for array in inputs]
            output = function(*leaves)
            weighted = (output * self.array(weight, "float64").to(output.dtype)).sum()
            return list(self.torch.autograd.grad(weighted, leaves, materialize_grads=True))

    def compiled(self, call: Function, attention: Any, options: Mapping[str, Any]) -> Function:
        return partial(call, attention, **options)

    @contextmanager
    def session(self) -> Iterator[None]:
        torch = self.torch
        restore = {
            "the default data type": (torch.get_default_dtype, torch.set_default_dtype),
            "the number of threads": (torch.get_num_threads, torch.set_num_threads),
            "the gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
        }
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(SEED)
            before = {name: get() for name, (get, _) in restore.items()}
            try:
                yield
            finally:
                if torch.initial_seed() != SEED:
                    self.changed.add("the random seed (manual_seed)")
                for name, (get, put) in restore.items():
                    if get() != before[name]:
                        self.changed.add(name)
                        put(before[name])


@final
class Jax:
    name = "jax"
    precisions: tuple[str, ...] = ("float32", "bfloat16")

    def __init__(self) -> None:
        import jax

        self.jax = jax
        self.changed: set[str] = set()
        self._compiled: dict[Any, Function] = {}

    def array(self, values: np.ndarray, dtype: str) -> Any:
        return self.jax.numpy.asarray(values, dtype=dtype if values.dtype.kind == "f" else None)

    def bait(self, values: np.ndarray, dtype: str) -> Any:
        return NumPy().array(values, dtype)  # functions of JAX return JAX arrays for NumPy arrays

    def numpy(self, array: Any) -> np.ndarray:
        if self.jax.numpy.issubdtype(array.dtype, self.jax.numpy.floating):
            array = array.astype("float64")
        return np.array(array)

    def is_array(self, array: Any) -> bool:
        return isinstance(array, self.jax.Array)

    def strided(self, array: Any) -> Any:
        raise Refused("is called with arrays of JAX, which have no strides")

    def expanded(self, array: Any) -> Any:
        raise Refused("is called with arrays of JAX, which have no strides")

    def gradients(self, function: Function, inputs: Sequence[Any], weight: np.ndarray) -> list[Any]:
        out, backward = self.jax.vjp(function, *inputs)
        return list(backward(self.array(weight, "float64").astype(out.dtype)))

    def compiled(self, call: Function, attention: Any, options: Mapping[str, Any]) -> Function:
        # Without jit each operation is compiled for each shape, which is several times slower.
        arrays = {name: value for name, value in options.items() if self.is_array(value)}
        fixed = {name: value for name, value in options.items() if name not in arrays}
        # By identity, because an attention need not be hashable. The compiled call keeps it alive.
        key = (id(call), id(attention), tuple(fixed.items()))
        if key not in self._compiled:
            self._compiled[key] = self.jax.jit(partial(call, attention, **fixed))

        def run(*inputs: Any) -> Any:
            try:
                return self._compiled[key](*inputs, **arrays)
            except Exception:  # jit cannot trace it; any other error occurs again in this call
                return call(attention, *inputs, **options)

        return run

    @contextmanager
    def session(self) -> Iterator[None]:
        with self.jax.enable_x64(True):
            yield


LIBRARIES: dict[str, Callable[..., Library]] = {"torch": Torch, "jax": Jax, "numpy": NumPy}


@contextmanager
def undisturbed(library: Library) -> Iterator[None]:
    """Seed Python, NumPy and the library, and restore their random states afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        with library.session():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
