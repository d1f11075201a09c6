"""causal: no token sees a later one, so that a model can be trained to predict the next.

    masked[i, j] = scaled[i, j] if j <= i else -inf,    weights = softmax(masked)

-inf *before* the softmax: exp(-inf) = 0, and each row still sums to 1. Setting the weights to 0
*after* the softmax and renormalising gives the same: `mask_then_renormalise` shows it. Setting
them to 0 without renormalising would leak the number of the later tokens' scores into the sum.
Vaswani et al. 2017, section 3.2.3.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.formula import MaskLike, attention, attention_weights
from headway.attention.heads import one_head
from headway.attention.masks import both, causal, materialise
from headway.attention.normalizers import divide_by_sum
from headway.attention.projections import project
from headway.ladder.rung import Parameters, Rung
from headway.ladder.trainable import BOOK, shapes


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    *,
    mask: MaskLike = None,
    attend: Callable[..., Array] = attention,
) -> Float[Array, "*batch tokens d_out"]:
    """context[i]: the values up to i, each counting by how well its key fits the query i."""
    queries, keys, values = project(x, **parameters)
    return one_head(attend)(queries, keys, values, mask=both(mask, causal))


def mask_then_renormalise(
    queries: Float[Array, "*batch heads tokens d_k"], keys: Float[Array, "*batch heads tokens d_k"]
) -> Float[Array, "*batch heads tokens tokens"]:
    """The same weights, the long way round: softmax over all, later ones to 0, divide by the sum.

    Equal because softmax's own sum cancels; -inf is one step shorter, and cannot divide by zero.
    """
    weights = attention_weights(queries, keys)
    return divide_by_sum(weights, materialise(causal, queries, keys))


RUNG = Rung(
    name="causal",
    idea="no token sees a later one: -inf before the softmax",
    equation="masked[i, j] = scaled[i, j] if j <= i else -inf,  weights = softmax(masked)",
    source="Vaswani et al. 2017, section 3.2.3",
    function=apply,
    shapes=shapes,
    example=lambda: (BOOK, {}),
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
