"""The plain mechanism with both products by einsum: shared keys and values are not repeated.

The heads of queries that share a head of keys get an axis of their own, (kv_heads, group), where
`plain` writes each head of keys and values `group` times.
"""

from __future__ import annotations

import numpy as np
from einops import einsum, rearrange

from headway.attention.arrays import Array
from headway.attention.formula import Keys, Queries, Weights, attention_weights
from headway.attention.spec import Call, Kernel
from headway.tracing import silent


def _refuse(call: Call) -> str | None:
    inputs = (call.queries, call.keys, call.values)
    if any(isinstance(x, np.ndarray) and x.dtype.kind == "V" for x in inputs):
        return "takes NumPy's own dtypes only, of which bfloat16 is none"
    return None


def _scores(queries: Queries, keys: Keys) -> Weights:
    grouped = rearrange(queries, "... (kv group) q d -> ... kv group q d", kv=keys.shape[-3])
    scores = einsum(grouped, keys, "... kv group q d, ... kv k d -> ... kv group q k")
    return rearrange(scores, "... kv group q k -> ... (kv group) q k")


def _run(call: Call) -> Array:
    with silent():  # a trace that asks for the weights runs `plain`
        weights = attention_weights(call.queries, call.keys, **call.options(), products=_scores)
    kv_heads = call.values.shape[-3]
    grouped = rearrange(weights, "... (kv group) q k -> ... kv group q k", kv=kv_heads)
    context = einsum(grouped, call.values, "... kv group q k, ... kv k e -> ... kv group q e")
    return rearrange(context, "... kv group q e -> ... (kv group) q e")


EINSUM = Kernel(refuse=_refuse, run=_run)
