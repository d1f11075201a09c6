"""The formula: attention(Q, K, V) = softmax(Q K^T / sqrt(d_k) + mask) V.

Vaswani et al. 2017, equation 1. Models run this function, or a kernel that is tested against it,
and a trace shows its steps.
"""

from collections.abc import Callable

from jaxtyping import Float

from headway.attention.arrays import Array, namespace, widened
from headway.attention.dropout import drop_cells
from headway.attention.grid import Grid, grid_of
from headway.attention.heads import group_of, repeat
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
    """The context of each query: the sum of the values, weighted by how well their keys match.

    queries (..., heads, Tq, d_k), keys (..., kv_heads, Tk, d_k), values (..., kv_heads, Tk, d_v)
    -> context (..., heads, Tq, d_v), in the dtype of the values. If values is None, returns the
    weights (..., heads, Tq, Tk). For 16-bit inputs the intermediate steps are in float32.

    spec: the options. grid: the positions of the cells; required only if the queries and keys are
    a part of a larger matrix of scores.

    Weights, context and gradients are 0 for a query that may attend to no key.
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
    sinks = None if spec.sink_logits is None else grid.of_heads(spec.sink_logits, "sink_logits")
    weights = tap("weights", normalize(scores, spec.normalizer, is_masked, sinks))
    if spec.dropout:
        weights = tap("dropped", drop_cells(weights, spec, grid))
    if values is None:
        return weights
    context = weights @ repeat(widened(values), like=queries)
    return tap("context", xp.astype(context, values.dtype, copy=False))


def inputs(
    queries: Queries, keys: Keys, values: Values | None, spec: Spec
) -> tuple[Queries, Keys, Values | None]:
    """Tap the inputs, and note the Spec in open traces, so that all steps can be recomputed.

    Called once at the start of every attention, whichever kernel computes it.
    """
    group = group_of(queries, keys)
    queries, keys = tap("queries", queries), tap("keys", keys, group)
    note("spec", spec._replace(scale=scale_of(spec.scale, queries)))
    return queries, keys, None if values is None else tap("values", values, group)
