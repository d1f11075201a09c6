"""stacked: several heads with different matrices, computed one after another.

    context = concat(head_1, ..., head_h),    head_i = `dropout` with W_query_i, W_key_i, W_value_i

With one head a token has one distribution of weights; several heads attend in different ways at the
same time. A loop calls the previous rung for each head: easy to read, slow to run. Raschka, 3.6.1.
"""

import numpy as np
from jaxtyping import Float

from headway.attention.arrays import Array, namespace
from headway.attention.formula import Attend, attention
from headway.attention.spec import DEFAULT, Spec, fold
from headway.ladder import causal
from headway.ladder.rung import (
    Example,
    Parameters,
    Rung,
    RungConfig,
    Shapes,
    frozen,
    keys_and_values,
    with_cache,
)
from headway.ladder.trainable import BOOK
from headway.tracing import scope


def shapes(config: RungConfig) -> Shapes:
    """Three arrays (heads, d_in, d_head): one matrix (d_in, d_head) for each head."""
    shape = (config.heads, config.d_in, config.d_head)
    return dict.fromkeys(("W_query", "W_key", "W_value"), shape)


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    spec: Spec = DEFAULT,
    *,
    heads: int = 1,
    attend: Attend = attention,
) -> Float[Array, "*batch tokens d_out"]:
    """Concatenate the contexts of the heads. The seed of dropout of head h is (*seed, h)."""
    if parameters["W_query"].shape[0] != heads:
        raise ValueError(f"heads is {heads}, but W_query has {parameters['W_query'].shape[0]}")
    contexts = []
    for head in range(heads):
        matrices = {name: stack[head] for name, stack in parameters.items()}
        with scope(f"heads.{head}"):
            contexts.append(causal.apply(x, matrices, fold(spec, head), attend=attend))
    return namespace(x).concat(contexts, axis=-1)


# The first head has the numbers of the book, the second has random numbers.
_SECOND = np.random.default_rng(123).random((3, 3, 2)).round(2)
TWO_HEADS = frozen(
    **{name: np.stack([BOOK[name], _SECOND[i]]) for i, name in enumerate(sorted(BOOK))}
)

RUNG = Rung(
    name="stacked",
    idea="several independent heads, computed one after another; their contexts are concatenated",
    equation="context = concat(head_1, ..., head_h)",
    source="Vaswani et al. 2017, section 3.2.2; Raschka 3.6.1",
    apply=apply,
    products=lambda heads, blocks: 5 * heads,
    shapes=shapes,
    example=lambda: Example(TWO_HEADS, heads=2),
    causal=True,
    has_heads=True,
    has_dropout=True,
    step=with_cache(apply),
    state_size=keys_and_values,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
