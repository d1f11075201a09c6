"""JAX's dot_product_attention, with the implementation that it chooses.

Its conventions differ from ours, mended here: the heads stand behind the tokens, `is_causal`
counts positions from the top left, and a row with nothing to attend to gets the mean of the
values or NaN. (Its windows count from there too, and are a mask like any other to it.)
"""

from __future__ import annotations

import sys
from math import prod
from typing import Any

from headway.attention.arrays import Array
from headway.attention.kernels.matrix import is_causal_from_top_left, matrix
from headway.attention.spec import Call, Kernel, beyond_softmax


def _refuse(call: Call) -> str | None:
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(call.queries, jax.Array):
        return "takes JAX arrays only"
    if call.keys.shape[-1] != call.values.shape[-1]:
        return "takes values as wide as the keys only"
    if not call.queries.dtype == call.keys.dtype == call.values.dtype:
        return "takes queries, keys and values of one dtype only"
    if call.queries.dtype == "float64":
        return "has a softmax in float32 only, too coarse for float64"
    return beyond_softmax(call)


def _run(call: Call) -> Array:
    import jax

    def attend(**mask: Any) -> Array:
        queries, keys, values = (_tokens_first(x) for x in (call.queries, call.keys, call.values))
        context = jax.nn.dot_product_attention(queries, keys, values, scale=call.scale, **mask)
        return context.swapaxes(1, 2).reshape(call.queries.shape)

    def whole(x: Array) -> Array:
        shape = (*call.queries.shape[:-1], call.keys.shape[-2])
        return jax.numpy.broadcast_to(x, shape).reshape(prod(shape[:-3]), *shape[-3:])

    if call.mask is None and call.bias is None:
        return attend()
    if is_causal_from_top_left(call):
        return attend(is_causal=True)
    allowed, bias, alive = matrix(call)
    context = attend(mask=whole(allowed), bias=None if bias is None else whole(bias))
    return jax.numpy.where(alive, context, 0.0)


def _tokens_first(x: Array) -> Array:
    """(..., heads, tokens, dim) -> (batch, tokens, heads, dim)."""
    return x.reshape(prod(x.shape[:-3]), *x.shape[-3:]).swapaxes(1, 2)


JAX = Kernel(refuse=_refuse, run=_run)
