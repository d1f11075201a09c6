"""The reference for attention: one query at a time."""

import math
from collections.abc import Sequence

import numpy as np

from headway.reference import Array, Mask, Normalizer
from headway.reference.dropout import keep
from headway.reference.masks import offsets
from headway.reference.normalizers import softmax
from headway.reference.scores import dot


def attention(
    queries: Array,
    keys: Array,
    values: Array,
    *,
    allowed: Mask | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    normalizer: Normalizer = softmax,
    sink_logits: Sequence[float] | None = None,
    dropout: float = 0.0,
    seed: tuple[int, ...] = (),
    offset: int | Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """softmax(queries @ keys.T / sqrt(d_k)) @ values: Vaswani et al. 2017, equation 1.

    queries (batch, heads, Tq, d_k), keys (batch, kv_heads, Tk, d_k), values (batch, kv_heads, Tk,
    d_v); `allowed` and `bias` broadcast from the right to (batch, heads, Tq, Tk). Returns the
    weights (batch, heads, Tq, Tk) before dropout and the context (batch, heads, Tq, d_v) after it.
    `offset` (see `masks.offsets`) affects only dropout. Grouped heads: Ainslie et al. 2023.
    """
    batch, heads, Tq, d_k = queries.shape
    _, kv_heads, Tk, d_v = values.shape
    shape = (batch, heads, Tq, Tk)
    allowed = np.broadcast_to(np.True_ if allowed is None else allowed, shape)
    bias = np.broadcast_to(np.float64(0.0) if bias is None else bias, shape)
    allowed = allowed & (bias != -np.inf)
    scale = 1.0 / math.sqrt(d_k) if scale is None else scale

    weights, context = np.zeros(shape), np.zeros((batch, heads, Tq, d_v))
    for b, first in enumerate(offsets(offset, batch, Tq, Tk)):
        for h in range(heads):
            group = h // (heads // kv_heads)
            products = dot(queries[b, h], keys[b, group])
            scores = np.zeros((Tq, Tk))
            for row in range(Tq):
                for k in range(Tk):
                    if allowed[b, h, row, k]:
                        score = float(products[row, k]) * scale
                        if softcap is not None:
                            score = softcap * math.tanh(score / softcap)
                        scores[row, k] = score + bias[b, h, row, k]
            weights[b, h], context[b, h] = weigh(
                scores,
                allowed[b, h],
                values[b, group],
                normalizer=normalizer,
                sink_logit=None if sink_logits is None else sink_logits[h],
                dropout=dropout,
                parts=(*seed, b, h),
                offset=first,
            )
    return weights, context


def weigh(
    scores: Array,
    allowed: Mask,
    values: Array,
    *,
    normalizer: Normalizer = softmax,
    sink_logit: float | None = None,
    dropout: float = 0.0,
    parts: tuple[int, ...] = (),
    offset: int = 0,
) -> tuple[Array, Array]:
    """The weights (Tq, Tk) and the context (Tq, d_v) of one head, from its scores (Tq, Tk).

    The value of a key that is not allowed is never read, so that a NaN in it has no effect. A sink
    (gpt-oss) is one more score of each row, without a value; its weight is left out.
    Dropout (Srivastava et al. 2014): the hash of (*parts, query_position, key_position) decides
    whether a cell is dropped; the other weights are divided by 1 - dropout.
    """
    weights, context = np.zeros(scores.shape), np.zeros((len(scores), values.shape[1]))
    for row in range(len(scores)):
        if allowed[row].any():
            if sink_logit is None:
                weights[row] = normalizer(scores[row], allowed[row])
            else:
                with_sink = np.append(scores[row], sink_logit), np.append(allowed[row], True)
                weights[row] = normalizer(*with_sink)[:-1]
            for k in range(len(values)):
                if allowed[row, k] and (dropout == 0.0 or keep((*parts, offset + row, k), dropout)):
                    context[row] += weights[row, k] / (1.0 - dropout) * values[k]
    return weights, context
