"""Split (..., tokens, heads * dim) into (..., heads, tokens, dim), and merge it again."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Shaped

from headway.attention.arrays import Array, integers, namespace


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
    separate = x.reshape((*x.shape[:-1], heads, x.shape[-1] // heads))
    return separate.swapaxes(-3, -2)


def merge(x: Shaped[Array, "... heads tokens dim"]) -> Shaped[Array, "... tokens features"]:
    """Concatenate the features of all heads: the inverse of `split`."""
    by_token = x.swapaxes(-3, -2)
    return by_token.reshape((*by_token.shape[:-2], x.shape[-3] * x.shape[-1]))


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


def group_of(queries: Shaped[Array, "... queries d_q"], keys: Shaped[Array, "... keys d_k"]) -> int:
    """The number of heads of queries that share one head of keys; 1 without a heads axis."""
    if queries.ndim < 3 or keys.ndim < 3:
        return 1
    return max(1, int(queries.shape[-3] // max(1, keys.shape[-3])))


def of_heads(
    x: Shaped[Array, "... kv_heads tokens dim"], heads: slice, group: int
) -> Shaped[Array, "... chosen tokens dim"]:
    """The head of x that each of these query heads reads; `group` query heads share one."""
    if x.ndim < 3:
        return x
    xp = namespace(x)
    index = integers(x.shape[-3] * group, x)[heads] // group
    return xp.take(x, index, axis=-3)


def one_head(attend: Callable[..., Array]) -> Callable[..., Array]:
    """A version of `attend` for arrays without a heads axis, (..., tokens, dim)."""

    def attend_one(queries: Array, keys: Array, values: Array, spec: Any) -> Array:
        with_axis = (x[..., None, :, :] for x in (queries, keys, values))
        return attend(*with_axis, spec)[..., 0, :, :]

    return attend_one
