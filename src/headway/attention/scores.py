"""Score functions: how well each query matches each key, (..., queries, keys)."""

from collections.abc import Callable

from jaxtyping import Float

from headway.attention.arrays import Array, namespace, widened
from headway.attention.heads import repeat
from headway.tracing import tap

Score = Callable[[Array, Array], Array]


def dot(
    queries: Float[Array, "... queries d_k"], keys: Float[Array, "... keys d_k"]
) -> Float[Array, "... queries keys"]:
    """score[q, k] = queries[q] . keys[k]  (Luong et al. 2015, "dot").

    Several heads of queries may share a head of keys.
    """
    return queries @ repeat(keys, like=queries).mT


def scaled_dot(
    queries: Float[Array, "... queries d_k"],
    keys: Float[Array, "... keys d_k"],
    scale: float | None = None,
) -> Float[Array, "... queries keys"]:
    """`dot` multiplied by `scale`, by default 1 / sqrt(d_k)  (Vaswani et al. 2017, equation 1).

    Without this scale the variance of the scores grows with d_k, and the softmax saturates.
    """
    return dot(queries, keys) * scale_of(scale, queries)


def scale_of(scale: float | None, queries: Float[Array, "... queries d_k"]) -> float:
    """The scale, by default 1 / sqrt(d_k)."""
    return float(max(queries.shape[-1], 1) ** -0.5) if scale is None else scale


def additive(
    queries: Float[Array, "... queries d_q"],
    keys: Float[Array, "... keys d_k"],
    W_query: Float[Array, "d_q d_a"],
    W_key: Float[Array, "d_k d_a"],
    v: Float[Array, " d_a"],
) -> Float[Array, "... queries keys"]:
    """score[q, k] = v . tanh(queries[q] @ W_query + keys[k] @ W_key).

    Bahdanau et al. 2015, appendix A.1.2. It needs memory for (..., queries, keys, d_a) numbers.
    """
    return tanh_sum(queries @ W_query, keys @ W_key, v)


def tanh_sum(
    queries: Float[Array, "... queries d_a"],
    keys: Float[Array, "... keys d_a"],
    v: Float[Array, " d_a"],
) -> Float[Array, "... queries keys"]:
    """score[q, k] = v . tanh(queries[q] + keys[k]): `additive` for projected queries and keys.

    For a decoder that adds one query per step: its keys are projected only once.
    """
    hidden = namespace(queries).tanh(queries[..., :, None, :] + keys[..., None, :, :])
    return tap("hidden", hidden) @ widened(v)
