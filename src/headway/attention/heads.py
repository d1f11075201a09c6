"""Split (..., tokens, heads * dim) into (..., heads, tokens, dim), and merge it again."""

from collections.abc import Callable
from typing import Any

from einops import rearrange
from jaxtyping import Shaped

from headway.attention.arrays import Array, namespace


def split(
    x: Shaped[Array, "... tokens features"], heads: int
) -> Shaped[Array, "... {heads} tokens dim"]:
    """Split the features into heads: head h gets the features from h * dim to (h + 1) * dim.

    This is a reshape and a transpose; a reshape alone would mix tokens and features.
    Raises ValueError if the number of heads does not divide the number of features.
    """
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(
            f"{heads} heads do not divide {x.shape[-1]} features; heads must be a divisor"
        )
    return rearrange(x, "... tokens (heads dim) -> ... heads tokens dim", heads=heads)


def merge(x: Shaped[Array, "... heads tokens dim"]) -> Shaped[Array, "... tokens features"]:
    """Concatenate the features of all heads: the inverse of `split`."""
    return rearrange(x, "... heads tokens dim -> ... tokens (heads dim)")


def repeat(
    x: Shaped[Array, "... kv_heads tokens dim"], like: Shaped[Array, "... heads queries features"]
) -> Shaped[Array, "... heads tokens dim"]:
    """Repeat the heads of x until there are as many as in `like` (Ainslie et al. 2023).

    Query head h reads kv head h // (heads // kv_heads). Arrays without a heads axis are returned
    unchanged. Raises ValueError if kv_heads does not divide heads.
    """
    if x.ndim < 3 or x.shape[-3] == like.shape[-3]:
        return x
    heads, kv_heads = like.shape[-3], x.shape[-3]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{kv_heads} kv_heads do not divide {heads} heads")
    return namespace(x).repeat(x, heads // kv_heads, axis=-3)


def one_head(attend: Callable[..., Array]) -> Callable[..., Array]:
    """A version of `attend` for arrays without a heads axis, (..., tokens, dim)."""

    def attend_one(queries: Array, keys: Array, values: Array, spec: Any) -> Array:
        with_axis = (x[..., None, :, :] for x in (queries, keys, values))
        return attend(*with_axis, spec)[..., 0, :, :]

    return attend_one
