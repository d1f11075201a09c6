"""Online softmax over tiles of queries and keys, with memory linear in the number of tokens.

Dao 2023 (FlashAttention-2), algorithms 1 and 2: the forward pass stores the context and the sum of
the exponentials of each row; the backward pass recomputes the tiles. `attention/online.py` has the
same algorithm in a form that is easier to read; it is used for NumPy, which has no gradients.
"""

from headway.attention.arrays import Array, engine
from headway.attention.kernels.kernel import EVERY_OPTION, Kernel
from headway.attention.online import online_attention
from headway.attention.spec import Spec


def _refuse(queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    if 0 in (*queries.shape[:-1], values.shape[-1]):
        return "does not support empty arrays; only the number of keys may be 0"
    if engine(queries) == "torch":
        from headway.attention.kernels import tiled_torch

        return tiled_torch.refuse(spec)
    if engine(queries) == "jax":
        from headway.attention.kernels import tiled_jax

        return tiled_jax.refuse(keys, spec)
    return None


def _run(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    if engine(queries) == "torch":
        from headway.attention.kernels import tiled_torch

        return tiled_torch.run(queries, keys, values, spec)
    if engine(queries) == "jax":
        from headway.attention.kernels import tiled_jax

        return tiled_jax.run(queries, keys, values, spec)
    return online_attention(queries, keys, values, spec)


TILED = Kernel(_run, EVERY_OPTION - {"normalizer", "score"}, _refuse)
