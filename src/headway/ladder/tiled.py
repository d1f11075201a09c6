"""tiled: the online softmax over blocks of keys, without the complete matrix of weights.

    for each block of keys:   m' = max(m, max(s)),   l' = e^(m - m') l + sum e^(s - m'),
                              c' = e^(m - m') c + e^(s - m') values
    at the end:               context = c / l

For each query only a running maximum m, a running sum l and a running context c are stored. When a
block has a larger maximum, the sums so far are scaled down. The result equals that of `fused`, in
memory that is linear in the number of tokens. Milakov and Gimelshein 2018; Dao et al. 2022
(FlashAttention).
"""

from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.formula import Attend
from headway.attention.online import online_attention
from headway.attention.spec import DEFAULT, Spec
from headway.ladder import fused
from headway.ladder.rung import Parameters, Rung, keys_and_values, with_cache


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    spec: Spec = DEFAULT,
    *,
    heads: int = 1,
    attend: Attend = online_attention,
) -> Float[Array, "*batch tokens d_out"]:
    """`fused`, with the online softmax instead of the formula; see `attention/online.py`."""
    return fused.apply(x, parameters, spec, heads=heads, attend=attend)


RUNG = Rung(
    name="tiled",
    idea="online softmax over blocks of keys: the same result in memory linear in the length",
    equation="m' = max(m, max s),  l' = e^(m-m') l + sum e^(s-m'),  c' = e^(m-m') c + e^(s-m') V",
    source="Milakov and Gimelshein 2018; Dao et al. 2022 (FlashAttention)",
    apply=apply,
    products=lambda heads, blocks: 2 + 2 * blocks,
    shapes=fused.shapes,
    example=fused.RUNG.example,
    causal=True,
    has_heads=True,
    has_dropout=True,
    has_blocks=True,
    equals="fused",
    step=with_cache(apply),
    state_size=keys_and_values,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
