"""causal: no token attends to a later one, so that a model can learn to predict the next token.

    masked[i, j] = scaled[i, j] if j <= i else -inf,    weights = softmax(masked)

The scores become -inf *before* the softmax: exp(-inf) = 0, and each row still sums to 1. Setting
weights to 0 *after* the softmax and dividing by their sum gives the same result, see
`mask_then_renormalise`; without the division a row would depend on the scores of later tokens.
Vaswani et al. 2017, section 3.2.3.
"""

from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.formula import Attend, attention
from headway.attention.heads import one_head
from headway.attention.masks import both, causal, materialize
from headway.attention.normalizers import divide_by_sum
from headway.attention.projections import project
from headway.attention.spec import DEFAULT, Spec
from headway.ladder.rung import Example, Parameters, Rung, keys_and_values, with_cache
from headway.ladder.trainable import BOOK, shapes


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    spec: Spec = DEFAULT,
    *,
    attend: Attend = attention,
) -> Float[Array, "*batch tokens d_out"]:
    """context[i] is the sum of the values up to i, weighted by how well keys match query i."""
    queries, keys, values = project(x, **parameters)
    return one_head(attend)(queries, keys, values, spec._replace(mask=both(spec.mask, causal)))


def mask_then_renormalise(
    queries: Float[Array, "*batch heads tokens d_k"], keys: Float[Array, "*batch heads tokens d_k"]
) -> Float[Array, "*batch heads tokens tokens"]:
    """Compute the same weights in three steps: softmax over all keys, mask, divide by the sum.

    The result is equal, because the sum in the denominator of the softmax cancels. Masking with
    -inf needs one step less and cannot divide by zero.
    """
    weights = attention(queries, keys, None)
    return divide_by_sum(weights, materialize(queries, keys, Spec(mask=causal)))


RUNG = Rung(
    name="causal",
    idea="no token attends to a later one: their scores are -inf before the softmax",
    equation="masked[i, j] = scaled[i, j] if j <= i else -inf,  weights = softmax(masked)",
    source="Vaswani et al. 2017, section 3.2.3",
    apply=apply,
    products=lambda heads, blocks: 5,
    shapes=shapes,
    example=lambda: Example(BOOK),
    causal=True,
    step=with_cache(apply),
    state_size=keys_and_values,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
