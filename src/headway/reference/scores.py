"""The reference for scores: queries (Tq, d_q), keys (Tk, d_k) -> scores (Tq, Tk)."""

import math

import numpy as np

from headway.reference import Array


def dot(q: Array, k: Array) -> Array:
    """The dot product of each query with each key."""
    scores = np.zeros((len(q), len(k)))
    for i, query in enumerate(q.tolist()):
        for j, key in enumerate(k.tolist()):
            scores[i, j] = sum(a * b for a, b in zip(query, key, strict=True))
    return scores


def scaled_dot(q: Array, k: Array) -> Array:
    """The dot product divided by sqrt(d_k): Vaswani et al. 2017, equation 1."""
    return dot(q, k) / math.sqrt(k.shape[1])


def additive(q: Array, k: Array, W_query: Array, W_key: Array, v: Array) -> Array:
    """v . tanh(q @ W_query + k @ W_key): Bahdanau et al. 2015, appendix A.1.2.

    W_query (d_q, d_a), W_key (d_k, d_a), v (d_a,).
    """
    scores = np.zeros((len(q), len(k)))
    for i, query in enumerate((q @ W_query).tolist()):
        for j, key in enumerate((k @ W_key).tolist()):
            scores[i, j] = sum(
                weight * math.tanh(a + b)
                for weight, a, b in zip(v.tolist(), query, key, strict=True)
            )
    return scores
