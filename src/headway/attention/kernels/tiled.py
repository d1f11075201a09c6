"""Online softmax over tiles of queries and keys, with memory linear in the number of tokens.

Dao 2023 (FlashAttention-2), algorithms 1 and 2: the forward pass stores the context and the sum of
the exponentials of each row; the backward pass recomputes the tiles. `attention/online.py` has the
same algorithm in a form that is easier to read; it is used for NumPy, which has no gradients.
"""

from types import ModuleType

from headway.attention.arrays import Array, engine
from headway.attention.kernels.kernel import EVERY_OPTION, Kernel
from headway.attention.online import online_attention
from headway.attention.spec import Spec


def _module(queries: Array) -> ModuleType | None:
    """The module for the engine of the queries; None for NumPy."""
    if engine(queries) == "torch":
        from headway.attention.kernels import tiled_torch

        return tiled_torch
    if engine(queries) == "jax":
        from headway.attention.kernels import tiled_jax

        return tiled_jax
    return None


def _refuse(queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    if 0 in (*queries.shape[:-1], values.shape[-1]):
        return "does not support empty arrays; only the number of keys may be 0"
    module = _module(queries)
    return None if module is None else module.refuse(keys, spec)


def _run(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    module = _module(queries)
    return (online_attention if module is None else module.run)(queries, keys, values, spec)


TILED = Kernel(_run, EVERY_OPTION - {"normalizer", "score"}, _refuse)
