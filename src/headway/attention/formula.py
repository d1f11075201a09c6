"""The formula: attention(Q, K, V) = softmax(Q K^T / sqrt(d_k) + mask) V.

Vaswani et al. 2017, equation 1. Models run this function, or a kernel that is tested against it,
and a trace shows its steps.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float

from headway.attention.arrays import Array, namespace, widened
from headway.attention.dropout import drop_cells
from headway.attention.grid import Grid, grid_of
from headway.attention.heads import repeat
from headway.attention.normalizers import normalize
from headway.attention.scores import scale_of
from headway.attention.spec import DEFAULT, Spec
from headway.tracing import note, tap

Queries = Float[Array, "*batch heads queries d_k"]
Keys = Float[Array, "*batch kv_heads keys d_k"]
Values = Float[Array, "*batch kv_heads keys d_v"]
Context = Float[Array, "*batch heads queries d_v"]
Weights = Float[Array, "*batch heads queries keys"]
Attend = Callable[[Array, Array, Array, Spec], Array]  # queries, keys, values, spec -> context


def attention(
    queries: Queries,
    keys: Keys,
    values: Values | None,
    spec: Spec = DEFAULT,
    grid: Grid | None = None,
) -> Context | Weights:
    """The context of each query: the values, weighted by how well their keys match the query.

    queries (..., heads, Tq, d_k), keys (..., kv_heads, Tk, d_k), values (..., kv_heads, Tk, d_v)
    -> context (..., heads, Tq, d_v), in the dtype of the values. Without values: the weights
    (..., heads, Tq, Tk). All steps between are float32 for inputs of 16 bits.

    spec: the options. grid: which cells these are, of a larger matrix of scores.

    A query that may attend to nothing gets weights 0, context 0 and gradients 0.
    """
    xp = namespace(queries)
    grid = grid_of(queries, keys, spec) if grid is None else grid
    queries, keys, values = inputs(queries, keys, values, spec)
    scores = tap("scores", spec.score(widened(queries), widened(keys)))
    scores = tap("scaled", scores * scale_of(spec.scale, queries))
    if spec.softcap is not None:
        scores = tap("capped", spec.softcap * xp.tanh(scores / spec.softcap))
    if spec.bias is not None:
        scores = scores + grid.cells_of(spec.bias, "bias")
    if spec.mask is not None:
        scores = xp.where(spec.mask.on(grid), scores, -xp.inf)
    if is_masked := spec.mask is not None or spec.bias is not None:
        scores = tap("masked", scores)
    weights = tap("weights", normalize(scores, spec.normalizer, is_masked))
    if spec.dropout:
        weights = tap("dropped", drop_cells(weights, spec, grid))
    if values is None:
        return weights
    context = weights @ repeat(widened(values), like=queries)
    return tap("context", xp.astype(context, values.dtype, copy=False))


def inputs(
    queries: Queries, keys: Keys, values: Values | None, spec: Spec
) -> tuple[Queries, Keys, Values | None]:
    """The inputs, tapped; a trace also gets the options, from which the rest can be recomputed.

    Every kernel begins with this.
    """
    queries, keys = tap("queries", queries), tap("keys", keys)
    note("spec", spec._replace(scale=scale_of(spec.scale, queries)))
    return queries, keys, None if values is None else tap("values", values)
