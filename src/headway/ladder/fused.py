"""fused: one matrix gives queries, keys and values, in one einsum.

    qkv = x W_qkv,    W_qkv = [W_query | W_key | W_value]

One large product uses the hardware better than three small ones, and einsum names the axes that
transposes and reshapes hide. The result equals that of `multihead`. GPT-2 uses the same layout.
"""

import numpy as np
from einops import einsum, rearrange
from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.formula import Attend, attention
from headway.attention.masks import both, causal
from headway.attention.spec import DEFAULT, Spec
from headway.ladder import multihead
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
from headway.tracing import tap


def shapes(config: RungConfig) -> Shapes:
    """W_qkv (d_in, 3 * d_out) with the columns [queries | keys | values], and W_output."""
    W_output = multihead.shapes(config)["W_output"]
    return {"W_qkv": (config.d_in, 3 * config.d_out), "W_output": W_output}


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    spec: Spec = DEFAULT,
    *,
    heads: int = 1,
    attend: Attend = attention,
) -> Float[Array, "*batch tokens d_out"]:
    """`multihead` with one matrix for queries, keys and values."""
    W_qkv = rearrange(parameters["W_qkv"], "d (three h e) -> three h d e", three=3, h=heads)
    queries, keys, values = einsum(x, W_qkv, "... t d, three h d e -> three ... h t e")
    context = attend(queries, keys, values, spec._replace(mask=both(spec.mask, causal)))
    W_output = rearrange(parameters["W_output"], "(h e) m -> h e m", h=heads)
    return tap("output", einsum(context, W_output, "... h t e, h e m -> ... t m"))


def from_multihead(parameters: Parameters) -> Parameters:
    """Concatenate the three matrices of `multihead` into one."""
    names = ("W_query", "W_key", "W_value")
    W_qkv = np.concatenate([parameters[name] for name in names], axis=-1)
    return frozen(W_qkv=W_qkv, W_output=parameters["W_output"])


RUNG: Rung = Rung(
    name="fused",
    idea="queries, keys and values from one matrix; einsum throughout",
    equation="qkv = x W_qkv,  W_qkv = [W_query | W_key | W_value]",
    source="Radford et al. 2019 (GPT-2's layout)",
    apply=apply,
    products=lambda heads, blocks: 4,
    shapes=shapes,
    example=lambda: Example(from_multihead(multihead.EXAMPLE.parameters), heads=2),
    causal=True,
    has_heads=True,
    has_dropout=True,
    equals="multihead",
    step=with_cache(apply),
    state_size=keys_and_values,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
