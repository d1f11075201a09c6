"""The heads one after another, each by the plain mechanism: slow, and the memory of one head."""

from __future__ import annotations

from headway.attention.arrays import Array, namespace
from headway.attention.formula import attention_weights
from headway.attention.masks import cells
from headway.attention.spec import Call, Kernel
from headway.tracing import silent


def _run(call: Call) -> Array:
    queries, keys, values = call.queries, call.keys, call.values
    group = queries.shape[-3] // keys.shape[-3]
    whole = cells(queries, keys, call.offset)
    contexts = []
    for head in range(queries.shape[-3]):
        own, shared = slice(head, head + 1), slice(head // group, head // group + 1)
        with silent():  # the weights of one head are no step that a trace could show
            weights = attention_weights(
                queries[..., own, :, :],
                keys[..., shared, :, :],
                **call.options(),
                where=whole.heads_only(own),
            )
        contexts.append(weights @ values[..., shared, :, :])
    return namespace(queries).concat(contexts, axis=-3)


STACKED = Kernel(refuse=lambda call: None, run=_run)
