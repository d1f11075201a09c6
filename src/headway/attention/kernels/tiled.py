"""The softmax online, over tiles of queries and keys: memory linear in the length.

Dao 2023 (FlashAttention-2), algorithms 1 and 2: the forward pass keeps of each row its context and
the logarithm of its sum of exponentials; the backward pass computes the tiles again. The rung
`tiled` of the ladder is the same idea to be read; NumPy, which needs no gradients, runs that.
"""

from __future__ import annotations

from headway.attention.arrays import Array
from headway.attention.normalizers import softmax
from headway.attention.online import online_attention
from headway.attention.spec import Call, Kernel, engine


def _refuse(call: Call) -> str | None:
    if call.normalizer is not softmax:
        return "has softmax only"
    if engine(call.queries) == "torch":
        from headway.attention.kernels import tiled_torch

        return tiled_torch.refuse(call)
    if engine(call.queries) == "jax":
        from headway.attention.kernels import tiled_jax

        return tiled_jax.refuse(call)
    return None


def _run(call: Call) -> Array:
    if engine(call.queries) == "torch":
        from headway.attention.kernels import tiled_torch

        return tiled_torch.run(call)
    if engine(call.queries) == "jax":
        from headway.attention.kernels import tiled_jax

        return tiled_jax.run(call)
    options = call.options()
    del options["normalizer"]
    return online_attention(call.queries, call.keys, call.values, **options)


TILED = Kernel(refuse=_refuse, run=_run)
