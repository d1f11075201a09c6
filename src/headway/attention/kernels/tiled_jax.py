"""`tiled` with JAX: a loop over tiles; its compilation time does not depend on the length.

JAX derives the backward pass. `jax.checkpoint` makes it recompute the tiles instead of storing
them, so memory is linear in the number of tokens.
"""

import jax
import jax.numpy as jnp
from jax import lax

from headway.attention.arrays import Array, integers, widened
from headway.attention.grid import grid_of
from headway.attention.heads import repeat
from headway.attention.masks import Mask, both
from headway.attention.online import State, context_of, start, with_block
from headway.attention.spec import Spec

ROWS, COLUMNS = 128, 512  # the size of a tile


def refuse(keys: Array, spec: Spec) -> str | None:
    """The reason why this call is not supported; None if it is."""
    if spec.bias is not None:
        return "does not support the option bias on JAX"
    if 0 in keys.shape:
        return "does not support empty arrays on JAX"
    if spec.mask is not None and spec.mask.predicate is None:
        return "does not support an array as a mask on JAX; use a mask such as padding(lengths)"
    return None


def run(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    """The context (..., heads, Tq, d_v)."""
    rows, columns, dtype = queries.shape[-2], keys.shape[-2], values.dtype
    grid = grid_of(queries, keys, spec)
    keys, values = repeat(keys, like=queries), repeat(values, like=queries)
    queries, keys, values = widened(queries), widened(keys), widened(values)
    blocks = (_blocks(queries, ROWS), _blocks(keys, COLUMNS), _blocks(values, COLUMNS))
    # The blocks are padded to one size; the mask excludes the padding.
    mask = both(spec.mask, Mask(lambda batch, head, query, key: key < columns))
    spec = spec._replace(mask=mask)

    def of_rows(first: Array, queries: Array, keys: Array, values: Array) -> Array:
        position = grid.query[..., :1, :] + first + integers(queries.shape[-2], queries)[:, None]

        def update(state: State, block: tuple[Array, ...]) -> tuple[State, None]:
            first, keys, values = block
            tile = grid._replace(query=position, key=first + integers(keys.shape[-2], keys))
            nearest = jnp.min(position) - jnp.max(tile.key)
            farthest = jnp.max(position) - first
            overlaps = (nearest <= mask.band.most) & (farthest >= mask.band.least)
            return lax.cond(
                overlaps,
                lambda state: with_block(state, queries, keys, values, spec, tile),
                lambda state: state,
                state,
            ), None

        starts = integers(len(keys), keys) * keys.shape[-2]
        blocks = (starts, keys, values)
        state, _ = lax.scan(jax.checkpoint(update), start(queries, values[0], spec, grid), blocks)
        return context_of(state)

    starts = integers(len(blocks[0]), queries) * blocks[0].shape[-2]
    contexts = lax.map(
        lambda block: jax.checkpoint(of_rows)(*block, *blocks[1:]), (starts, blocks[0])
    )
    context = jnp.moveaxis(contexts, 0, -3).reshape((*queries.shape[:-2], -1, values.shape[-1]))
    return context[..., :rows, :].astype(dtype)


def _blocks(x: Array, size: int) -> Array:
    """(..., tokens, dim) -> (blocks, ..., at most `size` tokens, dim), padded with zeros."""
    tokens = x.shape[-2]
    size = min(size, tokens)
    missing = -tokens % max(size, 1)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)])
    return jnp.moveaxis(x.reshape((*x.shape[:-2], -1, size, x.shape[-1])), -3, 0)
