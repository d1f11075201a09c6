"""dropout: in training, random weights are set to 0, so that no token relies on a single one.

    dropped[i, j] = weights[i, j] / (1 - p) with probability 1 - p, else 0

The other weights are divided by 1 - p, so that the expected context stays the same; rows no longer
sum to 1. Dropout is off in evaluation. Srivastava et al. 2014; for attention, Raschka 3.5.2.
"""

from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.formula import Attend, attention
from headway.attention.heads import one_head
from headway.attention.masks import both, causal
from headway.attention.projections import project
from headway.attention.spec import DEFAULT, Spec
from headway.ladder.causal import step
from headway.ladder.rung import Example, Parameters, Rung, keys_and_values
from headway.ladder.trainable import BOOK, shapes


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    spec: Spec = DEFAULT,
    *,
    attend: Attend = attention,
) -> Float[Array, "*batch tokens d_out"]:
    """`causal`, where the formula drops each weight with probability spec.dropout."""
    queries, keys, values = project(x, **parameters)
    return one_head(attend)(queries, keys, values, spec._replace(mask=both(spec.mask, causal)))


RUNG = Rung(
    name="dropout",
    idea="in training each weight is set to 0 with probability p, the others are divided by 1-p",
    equation="dropped[i, j] = weights[i, j] / (1 - p) with probability 1 - p, else 0",
    source="Srivastava et al. 2014",
    apply=apply,
    shapes=shapes,
    example=lambda: Example(BOOK, Spec(dropout=0.5, seed=123)),
    causal=True,
    has_dropout=True,
    step=step,
    state_size=keys_and_values,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
