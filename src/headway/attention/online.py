"""The softmax online: over blocks of keys, so that no matrix of weights ever exists.

    for each block of keys:   m' = max(m, max(s)),   l' = e^(m - m') l + sum e^(s - m'),
                              c' = e^(m - m') c + e^(s - m') values
    at the end:               context = c / l

Milakov and Gimelshein 2018; Dao et al. 2022 (FlashAttention). The rung `tiled` and the kernels
`tiled` of NumPy and JAX run this.
"""

from __future__ import annotations

from typing import Any

from headway.attention.arrays import Array, namespace
from headway.attention.dropout import Seed, drop
from headway.attention.formula import (
    Context,
    Keys,
    Queries,
    Values,
    inputs,
    masked_scores,
)
from headway.attention.heads import repeat
from headway.attention.masks import Cells, Offset, cells
from headway.tracing import silent, tap

BLOCK = 128  # keys at a time

State = tuple[Array, Array, Array]  # largest and total (..., queries, 1), context (..., d_v)


def online_attention(
    queries: Queries,
    keys: Keys,
    values: Values,
    *,
    dropout: float = 0.0,
    seed: Seed | None = None,
    offset: Offset = None,
    block: int = BLOCK,
    **how: Any,
) -> Context:
    """`parts.attention` with the softmax, `block` keys at a time. how: those of `masked_scores`."""
    queries, keys, values = inputs(queries, keys, values, **how, offset=offset)
    values = repeat(values, heads=queries.shape[-3])
    whole = cells(queries, keys, offset)
    state = nothing_seen(queries, values)
    for start in range(0, keys.shape[-2], block):
        tile = slice(start, start + block)
        where = whole.columns_only(tile)
        with silent():  # blocks of scores are no step that a trace could show
            scores = masked_scores(queries, keys[..., tile, :], where, **how)
        state = with_block(state, scores, values[..., tile, :], where, dropout, seed)
    return tap("context", context_of(state))


def nothing_seen(queries: Queries, values: Values) -> State:
    """The state of queries that have seen no key yet."""
    xp = namespace(queries)
    one = xp.sum(queries, axis=-1, keepdims=True) * 0
    return one - xp.inf, one, one * values[..., :1, :]


def with_block(
    state: State, scores: Array, values: Array, where: Cells, dropout: float, seed: Seed | None
) -> State:
    """The state after one more block of keys."""
    before, total, context = state
    xp = namespace(scores)
    largest = xp.maximum(before, xp.max(scores, axis=-1, keepdims=True))
    # As long as nothing was allowed the largest score is -inf, and -inf - -inf is NaN.
    anchor = xp.where(largest == -xp.inf, 0.0, largest)
    shrink = xp.exp(before - anchor)
    exponentials = xp.exp(scores - anchor)
    total = total * shrink + xp.sum(exponentials, axis=-1, keepdims=True)
    if dropout:  # of the weights, so the sum above is that of all
        coordinates = (where.batch, where.head, where.query, where.key)
        exponentials = drop(exponentials, dropout, seed, *coordinates)
    return largest, total, context * shrink + exponentials @ values


def context_of(state: State) -> Context:
    """What the queries have found: 0 for those that saw nothing."""
    _, total, context = state
    return context / namespace(total).where(total == 0, 1.0, total)
