"""fused: queries, keys and values from one matrix; each step one einsum.

    qkv = x W_qkv,    W_qkv = [W_query | W_key | W_value]

One large product keeps the hardware busier than three small ones, and einsum names the axes that
transposes and reshapes hide. The numbers are those of `multihead`. (GPT-2's own layout.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from einops import einsum, rearrange
from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.dropout import Seed
from headway.attention.formula import MaskLike, attention
from headway.attention.masks import both, causal
from headway.ladder import multihead
from headway.ladder.rung import Parameters, Rung, RungConfig, Shapes, frozen
from headway.ladder.stacked import TWO_HEADS
from headway.tracing import tap


def shapes(config: RungConfig) -> Shapes:
    """W_qkv (d_in, 3 * d_out), its columns [queries | keys | values], and W_output."""
    W_output = multihead.shapes(config)["W_output"]
    return {"W_qkv": (config.d_in, 3 * config.d_out), "W_output": W_output}


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
    """`multihead`, from one matrix."""
    W_qkv = rearrange(parameters["W_qkv"], "d (three h e) -> three h d e", three=3, h=heads)
    queries, keys, values = (einsum(x, W, "... t d, h d e -> ... h t e") for W in W_qkv)
    context = attend(queries, keys, values, mask=both(mask, causal), dropout=dropout, seed=seed)
    W_output = rearrange(parameters["W_output"], "(h e) m -> h e m", h=heads)
    return tap("output", einsum(context, W_output, "... h t e, h e m -> ... t m"))


def from_multihead(parameters: Parameters) -> Parameters:
    """The three matrices of `multihead` in one."""
    names = ("W_query", "W_key", "W_value")
    W_qkv = np.concatenate([parameters[name] for name in names], axis=-1)
    return frozen(W_qkv=W_qkv, W_output=parameters["W_output"])


RUNG = Rung(
    name="fused",
    idea="queries, keys and values from one matrix; einsum throughout",
    equation="qkv = x W_qkv,  W_qkv = [W_query | W_key | W_value]",
    source="Radford et al. 2019 (GPT-2's layout)",
    function=apply,
    shapes=shapes,
    example=lambda: (from_multihead(multihead.from_stacked(TWO_HEADS)), {"heads": 2}),
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
