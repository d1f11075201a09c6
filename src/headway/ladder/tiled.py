"""tiled: the keys in blocks, the softmax online; the matrix of weights never exists.

    for each block of keys:   m' = max(m, max(s)),   l' = e^(m - m') l + sum e^(s - m'),
                              c' = e^(m - m') c + e^(s - m') values
    at the end:               context = c / l

A running maximum m, a running sum l and a running context c are all that a query remembers; when
a block brings a larger maximum, what was summed so far is scaled down. The result is that of
`fused`, in memory linear in the length. Milakov and Gimelshein 2018; Dao et al. 2022
(FlashAttention).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float

from headway.ladder import fused
from headway.ladder.rung import Parameters, Rung
from headway.parts.arrays import Array, namespace
from headway.parts.attention import Context, Keys, MaskLike, Queries, Values, inputs, masked_scores
from headway.parts.dropout import Seed, drop
from headway.parts.heads import repeat
from headway.parts.masks import Cells, Offset, cells
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


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    *,
    heads: int = 1,
    mask: MaskLike = None,
    dropout: float = 0.0,
    seed: Seed | None = None,
    attend: Callable[..., Array] = online_attention,
) -> Float[Array, "*batch tokens d_out"]:
    """`fused`, with the online softmax for the mechanism."""
    return fused.apply(
        x, parameters, heads=heads, mask=mask, dropout=dropout, seed=seed, attend=attend
    )


RUNG = Rung(
    name="tiled",
    idea="the softmax online, over blocks of keys: the same result in memory linear in the length",
    equation="m' = max(m, max s),  l' = e^(m-m') l + sum e^(s-m'),  c' = e^(m-m') c + e^(s-m') V",
    source="Milakov and Gimelshein 2018; Dao et al. 2022 (FlashAttention)",
    function=apply,
    shapes=fused.shapes,
    example=fused.RUNG.example,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
