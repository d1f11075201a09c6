"""Normalization of vectors before a layer."""

from jaxtyping import Float

from headway.attention.arrays import Array, namespace, widened


def rms_norm(
    x: Float[Array, "... dim"], weight: Float[Array, "... dim"], eps: float
) -> Float[Array, "... dim"]:
    """weight * x / sqrt(mean(x^2) + eps)  (Zhang and Sennrich 2019, equation 4).

    The mean is over as many trailing axes as the weight has, usually one: x (..., dim) and weight
    (dim,). x is normalized in float32 or wider; the product with the weight is in the dtype of x.
    Raises ValueError if the shape of the weight differs from the last axes of x.
    """
    if x.shape[x.ndim - weight.ndim :] != weight.shape:
        raise ValueError(f"weight {tuple(weight.shape)} must match the end of x {tuple(x.shape)}")
    xp = namespace(x)
    wide = widened(x)  # sums in bfloat16 lose precision
    axes = tuple(range(-weight.ndim, 0))
    size = xp.sqrt(xp.mean(wide**2, axis=axes, keepdims=True) + eps)
    return xp.astype(wide / size, x.dtype) * weight
