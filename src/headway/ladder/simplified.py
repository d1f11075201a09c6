"""simplified: the tokens themselves decide, by how alike they are; nothing is learnt.

    scores = x x^T,    weights = softmax(scores),    context = weights x

Every token is compared with every other by a dot product; softmax turns the scores of one token
into shares; the context is the inputs mixed in these shares. Raschka, ch. 3.3.
"""

from __future__ import annotations

from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.normalizers import softmax
from headway.attention.spec import DEFAULT, Spec
from headway.ladder.rung import Parameters, Rung, allowed
from headway.tracing import tap


def apply(
    x: Float[Array, "*batch tokens d_in"], parameters: Parameters, spec: Spec = DEFAULT
) -> Float[Array, "*batch tokens d_in"]:
    """context[i]: the inputs, each counting by how well it fits the input i."""
    scores = tap("scores", x @ x.mT)
    weights = tap("weights", softmax(scores, allowed(spec, x)))
    return tap("context", weights @ x)


RUNG = Rung(
    name="simplified",
    idea="the weights come from the content: dot products of the inputs, then softmax",
    equation="weights = softmax(x x^T)",
    source="Raschka, Build a Large Language Model (From Scratch), 3.3",
    apply=apply,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
