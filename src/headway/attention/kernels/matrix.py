"""The mask and the bias of a call as whole matrices, for the kernels that take nothing else."""

from __future__ import annotations

from typing import NamedTuple

from headway.attention.arrays import Array, device, namespace
from headway.attention.masks import causal, cells
from headway.attention.spec import Call


class Matrix(NamedTuple):
    """Who may attend to whom, so that no row is dead.

    A query with nothing to attend to attends to everything here, so that no NaN reaches it or its
    gradients; what comes out of it is to be thrown away: where(alive, context, 0).
    """

    allowed: Array  # boolean; broadcasts to the scores, with as many axes
    bias: Array | None  # numbers, -inf where it is not allowed
    alive: Array  # boolean (..., queries, 1)


def matrix(call: Call) -> Matrix:
    """The mask and the bias of a call that has at least one of them."""
    xp = namespace(call.queries)
    where = cells(call.queries, call.keys, call.offset)
    whole = (1,) * (len(where.shape) - 2) + where.shape[-2:]
    allowed = xp.ones(whole, dtype=xp.bool, device=device(call.queries))
    if call.mask is not None:
        allowed = allowed & call.mask.on(where)
    bias = None if call.bias is None else where.of(call.bias, "bias")
    if bias is not None:
        allowed = allowed & (bias != -xp.inf)
    alive = xp.any(allowed, axis=-1, keepdims=True)
    allowed = allowed | ~alive
    if bias is not None:
        finite = xp.astype(xp.where(bias == -xp.inf, 0.0, bias), call.queries.dtype)
        bias = xp.where(allowed, finite, -xp.inf)
    return Matrix(allowed, bias, alive)


def is_causal_from_top_left(call: Call) -> bool:
    """Whether the mask is the causal one alone and the first query meets the first key.

    This is what libraries mean by `is_causal`.
    """
    if call.bias is not None or call.mask is None:
        return False
    if not call.mask.is_band or call.mask.band != causal.band:
        return False
    if call.offset is None:
        return bool(call.queries.shape[-2] == call.keys.shape[-2])
    return isinstance(call.offset, int) and call.offset == 0
