"""JAX's dot_product_attention: cuDNN's implementation where it accepts the call, else XLA's.

This module corrects three conventions that differ from ours: the heads axis is after the tokens,
`is_causal` counts positions from the top left, and a query that may attend to no key gets the mean
of the values or NaN. (JAX's windows count from the top left too, so a window is passed as a mask.)
"""

import sys
import warnings
from math import prod
from typing import Any

from headway.attention.arrays import Array
from headway.attention.kernels.kernel import Kernel
from headway.attention.kernels.matrix import is_causal_from_top_left, is_unmasked, matrix
from headway.attention.kernels.sdpa import SOFTMAX_ONLY
from headway.attention.spec import Spec


def _refuse(queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(queries, jax.Array):
        return "supports JAX arrays only"
    if keys.shape[-1] != values.shape[-1]:
        return "supports only values with as many features as the keys"
    if not queries.dtype == keys.dtype == values.dtype:
        return "supports only queries, keys and values of one dtype"
    if queries.dtype == "float64":
        return "does not support float64, as it computes the softmax in float32"
    if 0 in queries.shape or 0 in keys.shape:
        return "does not support empty arrays"
    return None


def _run(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    import jax

    def attend(**mask: Any) -> Array:
        inputs = [_tokens_first(x) for x in (queries, keys, values)]
        options = {"scale": spec.scale, **mask}
        context = _by_cudnn(inputs, options) if jax.default_backend() == "gpu" else None
        if context is None:
            context = jax.nn.dot_product_attention(*inputs, **options, implementation="xla")
        return context.swapaxes(1, 2).reshape(queries.shape)

    def complete(x: Array) -> Array:
        shape = (*queries.shape[:-1], keys.shape[-2])
        return jax.numpy.broadcast_to(x, shape).reshape(prod(shape[:-3]), *shape[-3:])

    if is_unmasked(queries, keys, spec):
        return attend()
    if is_causal_from_top_left(queries, keys, spec):
        return attend(is_causal=True)
    allowed, bias, any_allowed = matrix(queries, keys, spec)
    context = attend(mask=complete(allowed), bias=None if bias is None else complete(bias))
    return jax.numpy.where(any_allowed, context, 0.0)


def _by_cudnn(inputs: list[Array], options: dict[str, Any]) -> Array | None:
    """The context, or None if cuDNN is missing or does not support the call."""
    import jax

    if inputs[0].dtype not in ("bfloat16", "float16"):
        return None
    try:
        return jax.nn.dot_product_attention(*inputs, **options, implementation="cudnn")
    except (NotImplementedError, RuntimeError, ValueError) as error:  # JAX checks it while tracing
        # The default filter shows a warning once.
        warnings.warn(f"JAX runs attention without cuDNN: {error}", stacklevel=2)
        return None


def _tokens_first(x: Array) -> Array:
    """(..., heads, tokens, dim) -> (batch, tokens, heads, dim)."""
    return x.reshape(prod(x.shape[:-3]), *x.shape[-3:]).swapaxes(1, 2)


JAX = Kernel(_run, SOFTMAX_ONLY, _refuse)
