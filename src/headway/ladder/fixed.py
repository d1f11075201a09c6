"""fixed: weights by position alone; what the tokens say plays no part.

    weights[i, j] = 2^-|i - j| / sum over j,    context[i] = sum_j weights[i, j] x[j]

A moving average, as in a convolution with a kernel that nobody learnt (compare the hard-coded
attention of You, Sun and Iyyer 2020). It mixes neighbours well, and can look for nothing.
"""

from __future__ import annotations

from jaxtyping import Float

from headway.attention.arrays import Array, integers, namespace
from headway.attention.normalizers import divide_by_sum
from headway.attention.spec import DEFAULT, Spec
from headway.ladder.rung import Parameters, Rung, allowed
from headway.tracing import tap


def apply(
    x: Float[Array, "*batch tokens d_in"], parameters: Parameters, spec: Spec = DEFAULT
) -> Float[Array, "*batch tokens d_in"]:
    """context[i]: the mean of the inputs; the weight halves with every step away from i."""
    xp = namespace(x)
    position = integers(x.shape[-2], x)
    distance = xp.abs(position[:, None] - position)
    scores = tap("scores", 0.5 ** xp.astype(distance, x.dtype))
    weights = tap("weights", divide_by_sum(scores, allowed(spec, x)))
    return tap("context", weights @ x)


RUNG = Rung(
    name="fixed",
    idea="a token's context is the average of its neighbours, by fixed weights",
    equation="weights[i, j] = 2^-|i - j| / sum",
    source="the baseline: a convolution that nobody trained",
    apply=apply,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
