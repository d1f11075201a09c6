"""The formula with einsum for both matrix products, so that keys and values are not repeated.

The heads of queries are split into two axes (kv_heads, group): a group of heads shares one head of
keys and values. `plain` copies each head of keys and values `group` times instead.
"""

from einops import einsum, rearrange

from headway.attention.arrays import Array, namespace, widened
from headway.attention.formula import Keys, Queries, Weights, attention
from headway.attention.kernels.kernel import EVERY_OPTION, Kernel, refuse_no_heads
from headway.attention.spec import Spec
from headway.tracing import silent


def _scores(queries: Queries, keys: Keys) -> Weights:
    grouped = rearrange(queries, "... (kv group) q d -> ... kv group q d", kv=keys.shape[-3])
    scores = einsum(grouped, keys, "... kv group q d, ... kv k d -> ... kv group q k")
    return rearrange(scores, "... kv group q k -> ... (kv group) q k")


def _run(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    with silent():  # a trace of the weights runs the formula instead of this kernel
        weights = attention(queries, keys, None, spec._replace(score=_scores))
    grouped = rearrange(weights, "... (kv group) q k -> ... kv group q k", kv=values.shape[-3])
    context = einsum(grouped, widened(values), "... kv group q k, ... kv k e -> ... kv group q e")
    context = rearrange(context, "... kv group q e -> ... (kv group) q e")
    return namespace(values).astype(context, values.dtype, copy=False)


EINSUM = Kernel(run=_run, supports=EVERY_OPTION - {"score"}, refuse=refuse_no_heads)
