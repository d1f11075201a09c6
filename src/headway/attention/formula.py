"""The mechanism itself: attention(Q, K, V) = softmax(Q K^T / sqrt(d_k) + mask) V.

Vaswani et al. 2017, equation 1. This is the formula that models run, that every kernel is held
to and whose lines a trace shows. Axes: (..., heads, tokens, dim); keys and values may have fewer
heads (`kv_heads`), each shared by several heads of queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float

from headway.attention.arrays import Array, namespace
from headway.attention.dropout import Seed, drop
from headway.attention.heads import repeat
from headway.attention.masks import Cells, Mask, Offset, as_mask, cells
from headway.attention.normalizers import Normalizer, softmax, without_dead_rows
from headway.attention.scores import default_scale, dot
from headway.tracing import note, tap

Queries = Float[Array, "*batch heads queries d_k"]
Keys = Float[Array, "*batch kv_heads keys d_k"]
Values = Float[Array, "*batch kv_heads keys d_v"]
Context = Float[Array, "*batch heads queries d_v"]
Weights = Float[Array, "*batch heads queries keys"]
MaskLike = Mask | Bool[Array, "..."] | None
Bias = Float[Array, "..."] | None
Products = Callable[[Queries, Keys], Weights]


def grouped_dot(queries: Queries, keys: Keys) -> Weights:
    """`scores.dot`, each head of keys for its group of heads of queries."""
    return dot(queries, repeat(keys, heads=queries.shape[-3]))


def attention(
    queries: Queries,
    keys: Keys,
    values: Values,
    *,
    mask: MaskLike = None,
    bias: Bias = None,
    scale: float | None = None,
    softcap: float | None = None,
    normalizer: Normalizer = softmax,
    dropout: float = 0.0,
    seed: Seed | None = None,
    offset: Offset = None,
    products: Products = grouped_dot,
) -> Context:
    """Each query's context: the values, averaged by how well their keys fit the query.

    mask: who may attend to whom, a `Mask` or a boolean array (..., heads, queries, keys).
    bias: numbers added to the scaled scores; -inf forbids, as a mask does.
    scale: by default 1 / sqrt(d_k). softcap: c * tanh(scores / c) (Gemma 2), before the mask.
    offset: query_position = offset + row; by default keys - queries.
    dropout: of the weights, by `seed`; pass it only while training.
    products: how every query meets every key of its head, the score of `parts.scores`.

    A query with nothing to attend to gets context 0 and gradients 0. Raises ValueError when the
    shapes do not fit and for dropout without a seed.
    """
    queries, keys, values = inputs(
        queries,
        keys,
        values,
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        normalizer=normalizer,
        dropout=dropout,
        offset=offset,
        products=products,
    )
    weights = attention_weights(
        queries,
        keys,
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        normalizer=normalizer,
        dropout=dropout,
        seed=seed,
        offset=offset,
        products=products,
    )
    return tap("context", weights @ repeat(values, heads=queries.shape[-3]))


def inputs(
    queries: Queries, keys: Keys, values: Values, **options: Any
) -> tuple[Queries, Keys, Values]:
    """The inputs, tapped; a trace is also told the options, with which it can recompute the rest.

    Whatever way the mechanism is run, it begins with this.
    """
    queries, keys, values = tap("queries", queries), tap("keys", keys), tap("values", values)
    scale = options.get("scale")
    options = {**options, "scale": default_scale(queries) if scale is None else scale}
    note("options", options)
    return queries, keys, values


def attention_weights(
    queries: Queries,
    keys: Keys,
    *,
    mask: MaskLike = None,
    bias: Bias = None,
    scale: float | None = None,
    softcap: float | None = None,
    normalizer: Normalizer = softmax,
    dropout: float = 0.0,
    seed: Seed | None = None,
    offset: Offset = None,
    where: Cells | None = None,
    products: Products = grouped_dot,
) -> Weights:
    """The weights of `attention`, which explains the options.

    where: the cells that these queries and keys are, of a matrix that may be larger.
    """
    xp = namespace(queries)
    where = cells(queries, keys, offset) if where is None else where
    masked = masked_scores(
        queries,
        keys,
        where,
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        products=products,
    )
    if mask is None and bias is None:
        weights = normalizer(masked, None)
    else:
        allowed = masked != -xp.inf  # whether a mask or a bias of -inf forbids
        weights = normalizer(xp.where(allowed, masked, 0.0), allowed)
        weights = without_dead_rows(weights, allowed)
    weights = tap("weights", weights)
    if dropout:
        coordinates = (where.batch, where.head, where.query, where.key)
        weights = tap("dropped", drop(weights, dropout, seed, *coordinates))
    return weights


def masked_scores(
    queries: Queries,
    keys: Keys,
    where: Cells,
    *,
    mask: MaskLike = None,
    bias: Bias = None,
    scale: float | None = None,
    softcap: float | None = None,
    products: Products = grouped_dot,
) -> Weights:
    """The scores as they go into the normalizer: scaled, capped, biased, -inf where forbidden.

    where, products: as in `attention_weights`.
    """
    xp = namespace(queries)
    scale = default_scale(queries) if scale is None else scale
    scores = tap("scores", products(queries, keys))
    scores = tap("scaled", scores * scale)
    if softcap is not None:
        scores = tap("capped", softcap * xp.tanh(scores / softcap))
    if bias is not None:
        scores = scores + where.of(bias, "bias")
    if mask is not None:
        scores = xp.where(as_mask(mask).on(where), scores, -xp.inf)
    return scores if mask is None and bias is None else tap("masked", scores)
