"""`tiled` on JAX's own operations: a loop over tiles that compiles once, however long the text.

The backward pass is JAX's: `jax.checkpoint` makes it compute the tiles again rather than keep
them, so memory stays linear in the length.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from headway.attention.arrays import Array, integers
from headway.attention.formula import masked_scores
from headway.attention.heads import repeat
from headway.attention.masks import Mask, both, cells
from headway.attention.online import State, context_of, nothing_seen, with_block
from headway.attention.spec import Call

ROWS, COLUMNS = 128, 512  # of a tile


def refuse(call: Call) -> str | None:
    """Why this call cannot run; None when it can."""
    if call.bias is not None:
        return "takes no bias on JAX"
    if call.mask is not None and not call.mask.by_position:
        return "takes no array for a mask on JAX: say it by positions, as padding(lengths) does"
    return None


def run(call: Call) -> Array:
    """The context (..., heads, Tq, d_v)."""
    heads, rows, columns = call.queries.shape[-3], call.queries.shape[-2], call.keys.shape[-2]
    arrays = (call.queries, repeat(call.keys, heads), repeat(call.values, heads))
    queries, keys, values = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays)
    blocks = (_blocks(queries, ROWS), _blocks(keys, COLUMNS), _blocks(values, COLUMNS))
    # Blocks are filled up to one size; nobody sees the keys that do it.
    mask = both(call.mask, Mask(lambda batch, head, query, key: key < columns))
    where = cells(queries, keys, call.offset)

    def of_rows(first: Array, queries: Array, keys: Array, values: Array) -> Array:
        position = where.query[..., :1, :] + first + integers(queries.shape[-2], queries)[:, None]

        def seen(state: State, block: tuple[Array, ...]) -> tuple[State, None]:
            first, keys, values = block
            here = where._replace(query=position, key=first + integers(keys.shape[-2], keys))

            def with_tile(state: State) -> State:
                scores = masked_scores(
                    queries, keys, here, mask=mask, scale=call.scale, softcap=call.softcap
                )
                return with_block(state, scores, values, here, call.dropout, call.seed)

            nearest = jnp.min(position) - jnp.max(here.key)
            farthest = jnp.max(position) - first
            some = (nearest <= mask.band.most) & (farthest >= mask.band.least)
            return lax.cond(some, with_tile, lambda state: state, state), None

        starts = integers(len(keys), keys) * keys.shape[-2]
        state, _ = lax.scan(
            jax.checkpoint(seen), nothing_seen(queries, values[0]), (starts, keys, values)
        )
        return context_of(state)

    starts = integers(len(blocks[0]), queries) * blocks[0].shape[-2]
    contexts = lax.map(
        lambda block: jax.checkpoint(of_rows)(*block, *blocks[1:]), (starts, blocks[0])
    )
    context = jnp.moveaxis(contexts, 0, -3).reshape((*queries.shape[:-2], -1, values.shape[-1]))
    return context[..., :rows, :].astype(call.values.dtype)


def _blocks(x: Array, size: int) -> Array:
    """(..., tokens, dim) -> (blocks, ..., at most `size` tokens, dim), filled up with zeros."""
    tokens = x.shape[-2]
    size = min(size, tokens)
    missing = -tokens % max(size, 1)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)])
    return jnp.moveaxis(x.reshape((*x.shape[:-2], -1, size, x.shape[-1])), -3, 0)
