"""Heads are one more batch axis: (..., tokens, heads * dim) <-> (..., heads, tokens, dim)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from einops import rearrange
from jaxtyping import Shaped

from headway.attention.arrays import Array, namespace


def split(
    x: Shaped[Array, "... tokens features"], heads: int
) -> Shaped[Array, "... {heads} tokens dim"]:
    """Head h owns the features from h * dim up to (h + 1) * dim.

    A reshape *and* a transpose: a reshape alone would mix tokens and features.
    Raises ValueError when the heads do not divide the features.
    """
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"{heads} heads do not divide {x.shape[-1]} features")
    return rearrange(x, "... tokens (heads dim) -> ... heads tokens dim", heads=heads)


def merge(x: Shaped[Array, "... heads tokens dim"]) -> Shaped[Array, "... tokens features"]:
    """The heads' features side by side: the inverse of `split`."""
    return rearrange(x, "... heads tokens dim -> ... tokens (heads dim)")


def repeat(
    x: Shaped[Array, "... kv_heads tokens dim"], like: Shaped[Array, "... heads queries features"]
) -> Shaped[Array, "... heads tokens dim"]:
    """x with as many heads as `like`: query head h reads kv head h // (heads // kv_heads).

    Each head is repeated heads // kv_heads times in a row; arrays without a heads axis, or with
    equally many heads, are returned unchanged. Ainslie et al. 2023 (grouped queries).
    Raises ValueError when kv_heads does not divide heads.
    """
    if x.ndim < 3 or x.shape[-3] == like.shape[-3]:
        return x
    heads, kv_heads = like.shape[-3], x.shape[-3]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{kv_heads} heads of keys and values do not divide {heads} of queries")
    return namespace(x).repeat(x, heads // kv_heads, axis=-3)


def one_head(attend: Callable[..., Array]) -> Callable[..., Array]:
    """The same `attend` for arrays without a heads axis, (..., tokens, dim)."""

    def attend_one(queries: Array, keys: Array, values: Array, spec: Any) -> Array:
        with_axis = (x[..., None, :, :] for x in (queries, keys, values))
        return attend(*with_axis, spec)[..., 0, :, :]

    return attend_one
