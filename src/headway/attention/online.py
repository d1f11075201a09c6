"""Online softmax: attention over blocks of keys, without the complete matrix of weights.

    for each block of keys:   m' = max(m, max(s)),   l' = e^(m - m') l + sum e^(s - m'),
                              c' = e^(m - m') c + e^(s - m') values
    at the end:               context = c / l

Milakov and Gimelshein 2018; Dao et al. 2022 (FlashAttention). Each block is computed by the
formula, with e^(s - m') as the normalizer instead of the softmax.
"""

from typing import NamedTuple

from headway.attention.arrays import Array, device, namespace, widened
from headway.attention.formula import Context, Keys, Queries, Values, attention, inputs
from headway.attention.grid import Grid, grid_of
from headway.attention.spec import DEFAULT, Spec
from headway.tracing import silent, tap

BLOCK = 128  # keys per block


class State(NamedTuple):
    """The running maximum, sum and context of each query after some blocks of keys."""

    largest: Array  # m, the largest score (..., queries, 1)
    total: Array  # l, the sum of exponentials (..., queries, 1)
    context: Array  # c, the weighted sum of values (..., queries, d_v)


def online_attention(
    queries: Queries, keys: Keys, values: Values, spec: Spec = DEFAULT, block: int = BLOCK
) -> Context:
    """Compute `formula.attention` with the softmax, `block` keys at a time."""
    queries, keys, values = inputs(queries, keys, values, spec)
    grid = grid_of(queries, keys, spec)
    state = start(queries, values, spec, grid)
    for first in range(0, keys.shape[-2], block):
        columns = slice(first, first + block)
        part = keys[..., columns, :], values[..., columns, :]
        state = with_block(state, queries, *part, spec, grid.select(columns=columns))
    return tap("context", namespace(values).astype(context_of(state), values.dtype, copy=False))


def start(queries: Queries, values: Values, spec: Spec, grid: Grid) -> State:
    """The state before the first block; a sink is in the sum, but has no value."""
    xp = namespace(queries)
    dtype = widened(queries).dtype
    zeros = xp.zeros((*queries.shape[:-1], values.shape[-1]), dtype=dtype, device=device(queries))
    total = xp.zeros((*queries.shape[:-1], 1), dtype=dtype, device=device(queries))
    if spec.sink_logits is None:
        return State(total - xp.inf, total, zeros)
    sinks = xp.astype(grid.of_heads(spec.sink_logits, "sink_logits"), dtype, copy=False)
    return State(total + sinks, total + 1, zeros)


def with_block(
    state: State, queries: Queries, keys: Keys, values: Values, spec: Spec, grid: Grid
) -> State:
    """The state after one more block of keys. grid: the positions of the cells of this block."""
    xp = namespace(queries)
    largest, total = state.largest, state.total

    def exponentials(scores: Array, allowed: Array | None) -> Array:
        """Return e^(s - m') and update m and l."""
        nonlocal largest, total
        largest = xp.maximum(largest, xp.max(scores, axis=-1, keepdims=True))
        # Before the first allowed key the largest score is -inf, and -inf - -inf is NaN.
        weights = xp.exp(scores - xp.where(largest == -xp.inf, 0.0, largest))
        total = total * shrink() + xp.sum(weights, axis=-1, keepdims=True)
        return weights

    def shrink() -> Array:
        return xp.exp(state.largest - xp.where(largest == -xp.inf, 0.0, largest))

    spec = spec._replace(normalizer=exponentials, sink_logits=None)  # the sink is in the state
    with silent():  # the steps of a block are not the steps of the attention
        part = attention(queries, keys, widened(values), spec, grid)
    return State(largest, total, state.context * shrink() + part)


def context_of(state: State) -> Context:
    """The context c / l: 0 for queries that may attend to no key."""
    return state.context / namespace(state.total).where(state.total == 0, 1.0, state.total)
