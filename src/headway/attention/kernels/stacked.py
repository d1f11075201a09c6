"""The formula in a loop over the heads: slow, but needs memory for the weights of one head only."""

from headway.attention.arrays import Array, namespace
from headway.attention.formula import attention
from headway.attention.grid import grid_of
from headway.attention.kernels.kernel import Kernel, refuse_no_heads
from headway.attention.spec import Spec
from headway.tracing import silent


def _run(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    grid = grid_of(queries, keys, spec)
    heads = queries.shape[-3]
    group = heads // keys.shape[-3]
    contexts = []
    with silent():  # the steps of one head are not the steps of the attention
        for head in range(heads):
            one, kv = slice(head, head + 1), slice(head // group, head // group + 1)
            parts = queries[..., one, :, :], keys[..., kv, :, :], values[..., kv, :, :]
            contexts.append(attention(*parts, spec, grid.select(heads=one)))
    return namespace(queries).concat(contexts, axis=-3)


STACKED = Kernel(run=_run, refuse=refuse_no_heads)
