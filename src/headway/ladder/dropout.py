"""dropout: in training, random weights are set to 0, so that no token relies on a single one.

    dropped[i, j] = weights[i, j] / (1 - p) with probability 1 - p, else 0

The other weights are divided by 1 - p, so that the expected context stays the same; rows no longer
sum to 1. Dropout is off in evaluation. The function is that of `causal`: the formula drops each
weight with probability spec.dropout. Srivastava et al. 2014; for attention, Raschka 3.5.2.
"""

from headway.attention.spec import Spec
from headway.ladder.causal import apply
from headway.ladder.rung import Example, Rung, keys_and_values, with_cache
from headway.ladder.trainable import BOOK, shapes

RUNG = Rung(
    name="dropout",
    idea="in training each weight is set to 0 with probability p, the others are divided by 1-p",
    equation="dropped[i, j] = weights[i, j] / (1 - p) with probability 1 - p, else 0",
    source="Srivastava et al. 2014",
    apply=apply,
    products=lambda heads, blocks: 5,
    shapes=shapes,
    example=lambda: Example(BOOK, Spec(dropout=0.5, seed=123)),
    causal=True,
    has_dropout=True,
    step=with_cache(apply),
    state_size=keys_and_values,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
