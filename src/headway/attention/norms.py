"""Vectors brought to one size, before a layer or around it."""

from __future__ import annotations

from jaxtyping import Float

from headway.attention.arrays import Array, namespace


def rms_norm(
    x: Float[Array, "... dim"], weight: Float[Array, "... dim"], eps: float
) -> Float[Array, "... dim"]:
    """weight * x / sqrt(mean(x^2) + eps)  (Zhang and Sennrich 2019, equation 4).

    The mean is over the last axes, as many as the weight has: x (..., dim) and weight (dim,), or
    more. Computed in float32 at least up to the product with the weight, which is in x's dtype.
    Raises ValueError when the weight's shape is not that of x's last axes.
    """
    if x.shape[x.ndim - weight.ndim :] != weight.shape:
        raise ValueError(f"a weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}")
    xp = namespace(x)
    wide = xp.astype(x, xp.result_type(x.dtype, xp.float32))  # bfloat16 adds too coarsely
    axes = tuple(range(-weight.ndim, 0))
    size = xp.sqrt(xp.mean(wide**2, axis=axes, keepdims=True) + eps)
    return xp.astype(wide / size, x.dtype) * weight
