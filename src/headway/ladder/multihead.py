"""multihead: all heads at once; a reshape and a transpose split one projection into heads.

    Q, K, V = split(x W_query), split(x W_key), split(x W_value)      (heads, tokens, d_head)
    context = merge(softmax(Q K^T / sqrt(d_head)) V) W_output

The matrices of `stacked` are concatenated, so that one product replaces the loop over heads. A new
matrix, W_output, combines the contexts of the heads. Vaswani et al. 2017, section 3.2.2.
"""

import numpy as np
from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.formula import Attend, attention
from headway.attention.heads import merge, split
from headway.attention.masks import both, causal
from headway.attention.projections import output, project
from headway.attention.spec import DEFAULT, Spec
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
from headway.ladder.stacked import TWO_HEADS
from headway.ladder.trainable import shapes as three_matrices
from headway.tracing import tap


def shapes(config: RungConfig) -> Shapes:
    """W_query, W_key, W_value (d_in, d_out), where head h starts at column h * d_head; W_output."""
    config.d_head  # noqa: B018 - raises ValueError if heads do not divide d_out
    return {**three_matrices(config), "W_output": (config.d_out, config.d_out)}


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    spec: Spec = DEFAULT,
    *,
    heads: int = 1,
    attend: Attend = attention,
) -> Float[Array, "*batch tokens d_out"]:
    """project -> split -> attend -> merge -> output projection."""
    matrices = (parameters[name] for name in ("W_query", "W_key", "W_value"))
    queries, keys, values = (split(part, heads) for part in project(x, *matrices))
    context = attend(queries, keys, values, spec._replace(mask=both(spec.mask, causal)))
    return tap("output", output(merge(context), parameters["W_output"]))


def from_stacked(parameters: Parameters, W_output: Float[Array, "d_out d_out"]) -> Parameters:
    """Concatenate the matrices of `stacked`. If W_output is the identity, the result is equal."""
    joined = {name: np.concatenate(list(heads), -1) for name, heads in parameters.items()}
    return frozen(**joined, W_output=W_output)


EXAMPLE: Example = Example(
    from_stacked(TWO_HEADS, np.random.default_rng(123).normal(size=(4, 4)).round(1)), heads=2
)

RUNG = Rung(
    name="multihead",
    idea="all heads at once: one projection, split by reshape and transpose; an output projection",
    equation="head_i = softmax(Q_i K_i^T / sqrt(d_head)) V_i,  "
    "output = concat(head_1, ..., head_h) W_output",
    source="Vaswani et al. 2017, section 3.2.2",
    apply=apply,
    products=lambda heads, blocks: 6,
    shapes=shapes,
    example=lambda: EXAMPLE,
    causal=True,
    has_heads=True,
    has_dropout=True,
    step=with_cache(apply),
    state_size=keys_and_values,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
