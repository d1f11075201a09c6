"""simplified: the weights depend on how similar the tokens are; nothing is learned.

    scores = x x^T,    weights = softmax(scores),    context = weights x

The score of two tokens is their dot product. Softmax turns the scores of each token into weights
that sum to 1. The context is the sum of the inputs with these weights. Raschka, ch. 3.3.
"""

from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.normalizers import softmax
from headway.attention.spec import DEFAULT, Spec
from headway.ladder.rung import Parameters, Rung, allowed
from headway.tracing import tap


def apply(
    x: Float[Array, "*batch tokens d_in"], parameters: Parameters, spec: Spec = DEFAULT
) -> Float[Array, "*batch tokens d_in"]:
    """context[i] is the sum of the inputs, weighted by how similar they are to the input i."""
    scores = tap("scores", x @ x.mT)
    weights = tap("weights", softmax(scores, allowed(spec, x)))
    return tap("context", weights @ x)


RUNG = Rung(
    name="simplified",
    idea="the weights come from the content: dot products of the inputs, then softmax",
    equation="weights = softmax(x x^T)",
    source="Raschka, Build a Large Language Model (From Scratch), 3.3",
    apply=apply,
    products=lambda heads, blocks: 2,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
