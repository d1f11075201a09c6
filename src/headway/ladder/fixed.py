"""fixed: the weights depend only on the positions of the tokens, not on their content.

    weights[i, j] = 2^-|i - j| / sum over j,    context[i] = sum_j weights[i, j] x[j]

This is a moving average: a convolution whose kernel is not learned (compare the hard-coded
attention of You, Sun and Iyyer 2020). It mixes neighbors, but cannot search for a token.
"""

from jaxtyping import Float

from headway.attention.arrays import Array, integers, namespace
from headway.attention.normalizers import divide_by_sum
from headway.attention.spec import DEFAULT, Spec
from headway.ladder.rung import Parameters, Rung, allowed
from headway.tracing import tap


def apply(
    x: Float[Array, "*batch tokens d_in"], parameters: Parameters, spec: Spec = DEFAULT
) -> Float[Array, "*batch tokens d_in"]:
    """context[i] is a weighted mean of the inputs; the weight halves with each step away from i."""
    xp = namespace(x)
    position = integers(x.shape[-2], x)
    distance = xp.abs(position[:, None] - position)
    scores = tap("scores", 0.5 ** xp.astype(distance, x.dtype))
    weights = tap("weights", divide_by_sum(scores, allowed(spec, x)))
    return tap("context", weights @ x)


RUNG = Rung(
    name="fixed",
    idea="the context of a token is an average of its neighbors, with fixed weights",
    equation="weights[i, j] = 2^-|i - j| / sum_k 2^-|i - k|",
    source="the baseline: a convolution that is not trained",
    apply=apply,
    products=lambda heads, blocks: 1,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
