"""The reference for the rungs, from `fixed` to `tiled`, for one sequence at a time.

Every rung is `(x, parameters, options) -> (weights, context)` with x (tokens, d_in). The weights
are those before dropout: (tokens, tokens), or (heads, tokens, tokens) from `stacked` on. The order
is that of Raschka 2024, chapter 3.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from headway.reference import Array, Mask
from headway.reference.attention import weigh
from headway.reference.dropout import keep
from headway.reference.normalizers import divide_by_sum
from headway.reference.scores import dot, scaled_dot

Parameters = Mapping[str, Array]


class Options(NamedTuple):
    """The options of a rung; the rungs before `dropout` use only `allowed`.

    allowed: (tokens, tokens), or None if all cells are allowed. dropout: its probability. seed: of
    the dropout. batch: the index of the sequence in its batch.
    """

    allowed: Mask | None = None
    dropout: float = 0.0
    seed: tuple[int, ...] = ()
    batch: int = 0

    def mask(self, tokens: int) -> Mask:
        """The allowed cells as an array."""
        return np.ones((tokens, tokens), dtype=np.bool_) if self.allowed is None else self.allowed

    def past(self, tokens: int) -> Mask:
        """The same, without the tokens later than each query."""
        return np.tril(self.mask(tokens))


DEFAULT = Options()


def fixed(x: Array, parameters: Parameters, options: Options = DEFAULT) -> tuple[Array, Array]:
    """Weights proportional to 2**-|i - j|, independent of the tokens. No parameters."""
    tokens = len(x)
    nearness = np.zeros((tokens, tokens))
    for i in range(tokens):
        for j in range(tokens):
            nearness[i, j] = 2.0 ** -abs(i - j)
    return weigh(nearness, options.mask(tokens), x, normalizer=divide_by_sum)


def simplified(x: Array, parameters: Parameters, options: Options = DEFAULT) -> tuple[Array, Array]:
    """Scores are dot products of the inputs: Luong et al. 2015 ("dot"). No parameters."""
    return weigh(dot(x, x), options.mask(len(x)), x)


def trainable(x: Array, parameters: Parameters, options: Options = DEFAULT) -> tuple[Array, Array]:
    """Queries, keys and values from learned matrices: Vaswani et al. 2017, equation 1.

    W_query, W_key, W_value (d_in, d_out).
    """
    queries, keys, values = _project(x, parameters)
    return weigh(scaled_dot(queries, keys), options.mask(len(x)), values)


def causal(x: Array, parameters: Parameters, options: Options = DEFAULT) -> tuple[Array, Array]:
    """`trainable`, where token i attends to tokens j <= i: Vaswani et al. 2017, section 3.2.3."""
    return trainable(x, parameters, Options(options.past(len(x))))


def dropout(x: Array, parameters: Parameters, options: Options = DEFAULT) -> tuple[Array, Array]:
    """`causal` with dropout of the weights, by the hash of (*seed, batch, 0, i, j)."""
    queries, keys, values = _project(x, parameters)
    past = options.past(len(x))
    parts = (*options.seed, options.batch, 0)
    return weigh(scaled_dot(queries, keys), past, values, dropout=options.dropout, parts=parts)


def stacked(x: Array, parameters: Parameters, options: Options = DEFAULT) -> tuple[Array, Array]:
    """Several heads, each the rung `dropout` with different matrices; contexts are concatenated.

    W_query, W_key, W_value (heads, d_in, d_head); context (tokens, heads * d_head). The seed of
    head h is (*seed, h), so that its hash is of (*seed, h, batch, 0, i, j).
    """
    weights, contexts = [], []
    for h in range(len(parameters["W_query"])):
        matrices = {name: W[h] for name, W in parameters.items()}
        of_head = options._replace(seed=(*options.seed, h))
        head_weights, context = dropout(x, matrices, of_head)
        weights.append(head_weights)
        contexts.append(context)
    return np.stack(weights), np.concatenate(contexts, axis=1)


def multihead(
    x: Array, parameters: Parameters, options: Options = DEFAULT, *, heads: int
) -> tuple[Array, Array]:
    """Several heads with one input and one output projection: Vaswani et al. 2017, section 3.2.2.

    W_query, W_key, W_value (d_in, d_out), W_output (d_out, d_out). Head h uses the columns from
    h * d_head to (h + 1) * d_head; its hash is of (*seed, batch, h, i, j).
    """
    queries, keys, values = _project(x, parameters)
    past = options.past(len(x))
    d_head = queries.shape[1] // heads
    weights, context = np.zeros((heads, len(x), len(x))), np.zeros(values.shape)
    for h in range(heads):
        columns = slice(h * d_head, (h + 1) * d_head)
        scores = scaled_dot(queries[:, columns], keys[:, columns])
        weights[h], context[:, columns] = weigh(
            scores,
            past,
            values[:, columns],
            dropout=options.dropout,
            parts=(*options.seed, options.batch, h),
        )
    return weights, context @ parameters["W_output"]


def fused(
    x: Array, parameters: Parameters, options: Options = DEFAULT, *, heads: int
) -> tuple[Array, Array]:
    """`multihead` with one matrix W_qkv (d_in, 3 * d_out), columns [queries | keys | values].

    W_output (d_out, d_out).
    """
    W_query, W_key, W_value = np.split(parameters["W_qkv"], 3, axis=1)
    W_output = parameters["W_output"]
    split = {"W_query": W_query, "W_key": W_key, "W_value": W_value, "W_output": W_output}
    return multihead(x, split, options, heads=heads)


def tiled(
    x: Array, parameters: Parameters, options: Options = DEFAULT, *, heads: int
) -> tuple[None, Array]:
    """`fused` without ever storing a row of weights; returns (None, context).

    The online softmax of Milakov & Gimelshein 2018 (algorithm 3), with the running context of Dao
    et al. 2022 (algorithm 1), with tiles of one key. The parameters are those of `fused`.
    """
    queries, keys, values = np.split(x @ parameters["W_qkv"], 3, axis=1)
    given = options.mask(len(x))
    d_head = queries.shape[1] // heads
    context = np.zeros(values.shape)
    for h in range(heads):
        columns = slice(h * d_head, (h + 1) * d_head)
        q, k, v = queries[:, columns], keys[:, columns], values[:, columns]
        for i in range(len(x)):
            peak, total, summed = -math.inf, 0.0, np.zeros(d_head)
            for j in range(i + 1):
                if given[i, j]:
                    product = sum(a * b for a, b in zip(q[i], k[j], strict=True))
                    score = float(product) / math.sqrt(d_head)
                    higher = max(peak, score)
                    # Scale the sums so far to the new peak; before the first key they are 0.
                    shrink, weight = math.exp(peak - higher), math.exp(score - higher)
                    peak, total = higher, total * shrink + weight
                    summed *= shrink
                    if options.dropout == 0.0 or keep(
                        (*options.seed, options.batch, h, i, j), options.dropout
                    ):
                        summed += weight / (1.0 - options.dropout) * v[j]
            if total > 0.0:
                context[i, columns] = summed / total
    return None, context @ parameters["W_output"]


def _project(x: Array, parameters: Parameters) -> tuple[Array, Array, Array]:
    """Queries, keys and values of the tokens, each (tokens, d_out)."""
    return x @ parameters["W_query"], x @ parameters["W_key"], x @ parameters["W_value"]
