"""multihead: all heads at once, from one projection, split by reshape and transpose.

    Q, K, V = split(x W_query), split(x W_key), split(x W_value)      (heads, tokens, d_head)
    context = merge(softmax(Q K^T / sqrt(d_head)) V) W_output

The same numbers as `stacked` with its matrices side by side, in one product instead of a loop;
and W_output, new here, lets the heads talk to each other. Vaswani et al. 2017, section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.dropout import Seed
from headway.attention.formula import MaskLike, attention
from headway.attention.heads import merge, split
from headway.attention.masks import both, causal
from headway.attention.projections import output, project
from headway.ladder.rung import Parameters, Rung, RungConfig, Shapes, frozen
from headway.ladder.stacked import TWO_HEADS
from headway.ladder.trainable import shapes as three_matrices
from headway.tracing import tap


def shapes(config: RungConfig) -> Shapes:
    """W_query, W_key, W_value (d_in, d_out), head h in the columns from h * d_head; W_output."""
    config.d_head  # noqa: B018 - refuses heads that do not divide
    return {**three_matrices(config), "W_output": (config.d_out, config.d_out)}


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    *,
    heads: int = 1,
    mask: MaskLike = None,
    dropout: float = 0.0,
    seed: Seed | None = None,
    attend: Callable[..., Array] = attention,
) -> Float[Array, "*batch tokens d_out"]:
    """project -> split -> attend -> merge -> output."""
    W_query, W_key, W_value = (parameters[name] for name in ("W_query", "W_key", "W_value"))
    queries, keys, values = (split(part, heads) for part in project(x, W_query, W_key, W_value))
    context = attend(queries, keys, values, mask=both(mask, causal), dropout=dropout, seed=seed)
    return tap("output", output(merge(context), parameters["W_output"]))


def from_stacked(parameters: Parameters) -> Parameters:
    """The matrices of `stacked` side by side; W_output the identity, so the result is the same."""
    side_by_side = {name: np.concatenate(list(heads), -1) for name, heads in parameters.items()}
    return frozen(**side_by_side, W_output=np.eye(side_by_side["W_value"].shape[-1]))


RUNG = Rung(
    name="multihead",
    idea="all heads at once: one projection, split by reshape and transpose; an output projection",
    equation="context = merge(softmax(Q K^T / sqrt(d_head)) V) W_output,  Q, K, V split into heads",
    source="Vaswani et al. 2017, section 3.2.2",
    function=apply,
    shapes=shapes,
    example=lambda: (from_stacked(TWO_HEADS), {"heads": 2}),
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
