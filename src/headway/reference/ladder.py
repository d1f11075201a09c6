"""The rungs from a fixed average to tiled attention, each on one sequence.

Every rung is `(x, parameters, *, allowed=None, dropout=0.0, seed=(), batch=0) -> (weights,
context)`: x (tokens, d_in), `allowed` (tokens, tokens) or None for everything, `batch` the index
of this sequence among those that share a seed. The weights are those before dropout: (tokens,
tokens), or (heads, tokens, tokens) from `stacked` on. The rungs before `dropout` ignore the last
three keywords. The order is that of Raschka 2024, chapter 3.
"""

import math
from collections.abc import Mapping

import numpy as np

from headway.reference import Array, Mask
from headway.reference.attention import weigh
from headway.reference.dropout import keep
from headway.reference.normalizers import divide_by_sum
from headway.reference.scores import dot, scaled_dot

Parameters = Mapping[str, Array]
Seed = tuple[int, ...]


def fixed(
    x: Array,
    parameters: Parameters,
    *,
    allowed: Mask | None = None,
    dropout: float = 0.0,
    seed: Seed = (),
    batch: int = 0,
) -> tuple[Array, Array]:
    """Weights in proportion to 2**-|i - j|, whatever the tokens are. No parameters."""
    tokens = len(x)
    nearness = np.zeros((tokens, tokens))
    for i in range(tokens):
        for j in range(tokens):
            nearness[i, j] = 2.0 ** -abs(i - j)
    return weigh(nearness, _given(allowed, tokens), x, normalizer=divide_by_sum)


def simplified(
    x: Array,
    parameters: Parameters,
    *,
    allowed: Mask | None = None,
    dropout: float = 0.0,
    seed: Seed = (),
    batch: int = 0,
) -> tuple[Array, Array]:
    """Scores are dot products of the inputs: Luong et al. 2015 ("dot"). No parameters."""
    return weigh(dot(x, x), _given(allowed, len(x)), x)


def trainable(
    x: Array,
    parameters: Parameters,
    *,
    allowed: Mask | None = None,
    dropout: float = 0.0,
    seed: Seed = (),
    batch: int = 0,
) -> tuple[Array, Array]:
    """Queries, keys and values are learnt: Vaswani et al. 2017, equation 1.

    W_query, W_key, W_value (d_in, d_out).
    """
    queries, keys, values = _project(x, parameters)
    return weigh(scaled_dot(queries, keys), _given(allowed, len(x)), values)


def causal(
    x: Array,
    parameters: Parameters,
    *,
    allowed: Mask | None = None,
    dropout: float = 0.0,
    seed: Seed = (),
    batch: int = 0,
) -> tuple[Array, Array]:
    """`trainable`, where token i sees the tokens j <= i: Vaswani et al. 2017, section 3.2.3."""
    return trainable(x, parameters, allowed=_past(allowed, len(x)))


def dropout(
    x: Array,
    parameters: Parameters,
    *,
    allowed: Mask | None = None,
    dropout: float = 0.0,
    seed: Seed = (),
    batch: int = 0,
) -> tuple[Array, Array]:
    """`causal`, with dropout on the weights; the hash is of (*seed, batch, 0, i, j)."""
    queries, keys, values = _project(x, parameters)
    past = _past(allowed, len(x))
    parts = (*seed, batch, 0)
    return weigh(scaled_dot(queries, keys), past, values, dropout=dropout, parts=parts)


def stacked(
    x: Array,
    parameters: Parameters,
    *,
    allowed: Mask | None = None,
    dropout: float = 0.0,
    seed: Seed = (),
    batch: int = 0,
) -> tuple[Array, Array]:
    """Several of the rung `dropout`, each with its own matrices, side by side.

    W_query, W_key, W_value (heads, d_in, d_head); context (tokens, heads * d_head). Head h takes
    the seed (*seed, h), so that its hash is of (*seed, h, batch, 0, i, j).
    """
    weights, contexts = [], []
    for h in range(len(parameters["W_query"])):
        queries, keys, values = _project(x, {name: W[h] for name, W in parameters.items()})
        past = _past(allowed, len(x))
        parts = (*seed, h, batch, 0)
        one = weigh(scaled_dot(queries, keys), past, values, dropout=dropout, parts=parts)
        weights.append(one[0])
        contexts.append(one[1])
    return np.stack(weights), np.concatenate(contexts, axis=1)


def multihead(
    x: Array,
    parameters: Parameters,
    *,
    heads: int,
    allowed: Mask | None = None,
    dropout: float = 0.0,
    seed: Seed = (),
    batch: int = 0,
) -> tuple[Array, Array]:
    """One projection for all heads and one after them: Vaswani et al. 2017, section 3.2.2.

    W_query, W_key, W_value (d_in, d_out), W_output (d_out, d_out). Head h owns the columns from
    h * d_head to (h + 1) * d_head; its hash is of (*seed, batch, h, i, j).
    """
    queries, keys, values = _project(x, parameters)
    past = _past(allowed, len(x))
    d_head = queries.shape[1] // heads
    weights, context = np.zeros((heads, len(x), len(x))), np.zeros(values.shape)
    for h in range(heads):
        own = slice(h * d_head, (h + 1) * d_head)
        scores = scaled_dot(queries[:, own], keys[:, own])
        weights[h], context[:, own] = weigh(
            scores, past, values[:, own], dropout=dropout, parts=(*seed, batch, h)
        )
    return weights, context @ parameters["W_output"]


def fused(
    x: Array,
    parameters: Parameters,
    *,
    heads: int,
    allowed: Mask | None = None,
    dropout: float = 0.0,
    seed: Seed = (),
    batch: int = 0,
) -> tuple[Array, Array]:
    """`multihead`, its three matrices in one: W_qkv (d_in, 3 * d_out), [queries | keys | values].

    W_output (d_out, d_out).
    """
    W_query, W_key, W_value = np.split(parameters["W_qkv"], 3, axis=1)
    W_output = parameters["W_output"]
    return multihead(
        x,
        {"W_query": W_query, "W_key": W_key, "W_value": W_value, "W_output": W_output},
        heads=heads,
        allowed=allowed,
        dropout=dropout,
        seed=seed,
        batch=batch,
    )


def tiled(
    x: Array,
    parameters: Parameters,
    *,
    heads: int,
    allowed: Mask | None = None,
    dropout: float = 0.0,
    seed: Seed = (),
    batch: int = 0,
) -> tuple[None, Array]:
    """`fused` without a row of weights ever being held: it returns (None, context).

    The online softmax of Milakov & Gimelshein 2018 (algorithm 3), with the running context of Dao
    et al. 2022 (algorithm 1), here in tiles of one key. Parameters as for `fused`.
    """
    queries, keys, values = np.split(x @ parameters["W_qkv"], 3, axis=1)
    given = _given(allowed, len(x))
    d_head = queries.shape[1] // heads
    context = np.zeros(values.shape)
    for h in range(heads):
        own = slice(h * d_head, (h + 1) * d_head)
        for i in range(len(x)):
            peak, total, gathered = -math.inf, 0.0, np.zeros(d_head)
            for j in range(i + 1):
                if given[i, j]:
                    product = sum(a * b for a, b in zip(queries[i, own], keys[j, own], strict=True))
                    score = float(product) / math.sqrt(d_head)
                    higher = max(peak, score)
                    # What was gathered under the old peak shrinks; before the first key, to 0.
                    shrink, weight = math.exp(peak - higher), math.exp(score - higher)
                    peak, total = higher, total * shrink + weight
                    gathered *= shrink
                    if dropout == 0.0 or keep((*seed, batch, h, i, j), dropout):
                        gathered += weight / (1.0 - dropout) * values[j, own]
            if total > 0.0:
                context[i, own] = gathered / total
    return None, context @ parameters["W_output"]


def _project(x: Array, parameters: Parameters) -> tuple[Array, Array, Array]:
    """Queries, keys and values of the tokens, each (tokens, d_out)."""
    return x @ parameters["W_query"], x @ parameters["W_key"], x @ parameters["W_value"]


def _given(allowed: Mask | None, tokens: int) -> Mask:
    """The mask that the caller gave, or everything."""
    return np.ones((tokens, tokens), dtype=np.bool_) if allowed is None else allowed


def _past(allowed: Mask | None, tokens: int) -> Mask:
    """What the caller allows, and is not later than the token itself."""
    return np.tril(_given(allowed, tokens))
