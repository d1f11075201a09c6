"""The three engines, for tests that run on each of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch


class Engine(NamedTuple):
    array: Callable[[Any], Any]
    numpy: Callable[[Any], np.ndarray]
    # (function of arrays -> array, arrays) -> the gradients of sum(output * weight)
    gradients: Callable[..., list[np.ndarray]]


def _weight(shape: tuple[int, ...]) -> np.ndarray:
    """No two outputs count alike, so that a transposed or averaged gradient is seen."""
    return np.cos(np.arange(np.prod(shape, dtype=int)) + 1.0).reshape(shape)


def _torch_gradients(function: Callable[..., Any], *arrays: Any) -> list[np.ndarray]:
    leaves = [torch.tensor(np.asarray(a), dtype=torch.float64, requires_grad=True) for a in arrays]
    out = function(*leaves)
    loss = (out * torch.from_numpy(_weight(tuple(out.shape)))).sum()
    result = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [gradient.numpy() for gradient in result]


def _jax_gradients(function: Callable[..., Any], *arrays: Any) -> list[np.ndarray]:
    def loss(*leaves: Any) -> Any:
        out = function(*leaves)
        return (out * _weight(out.shape)).sum()

    leaves = [jnp.asarray(np.asarray(a)) for a in arrays]
    return [np.asarray(g) for g in jax.grad(loss, argnums=tuple(range(len(leaves))))(*leaves)]


def _torch_array(array: Any) -> torch.Tensor:
    array = np.asarray(array)
    if array.dtype == ml_dtypes.bfloat16:  # which PyTorch and NumPy know by the bits alone
        return torch.tensor(array.view(np.uint16)).view(torch.bfloat16)
    return torch.tensor(array)


def _torch_numpy(array: Any) -> np.ndarray:
    if not isinstance(array, torch.Tensor):
        return np.asarray(array)
    if array.dtype == torch.bfloat16:
        return array.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return array.detach().numpy()


def _no_gradients(function: Callable[..., Any], *arrays: Any) -> list[np.ndarray]:
    raise NotImplementedError("NumPy has no gradients")


ENGINES = {
    "numpy": Engine(np.asarray, np.asarray, _no_gradients),
    "torch": Engine(_torch_array, _torch_numpy, _torch_gradients),
    "jax": Engine(lambda a: jnp.asarray(np.asarray(a)), np.asarray, _jax_gradients),
}
