"""tiled: the keys in blocks, the softmax online; the matrix of weights never exists.

    for each block of keys:   m' = max(m, max(s)),   l' = e^(m - m') l + sum e^(s - m'),
                              c' = e^(m - m') c + e^(s - m') values
    at the end:               context = c / l

A running maximum m, a running sum l and a running context c are all that a query remembers; when
a block brings a larger maximum, what was summed so far is scaled down. The result is that of
`fused`, in memory linear in the length. Milakov and Gimelshein 2018; Dao et al. 2022
(FlashAttention).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.dropout import Seed
from headway.attention.formula import MaskLike
from headway.attention.online import online_attention
from headway.ladder import fused
from headway.ladder.rung import Parameters, Rung


def apply(
    x: Float[Array, "*batch tokens d_in"],
    parameters: Parameters,
    *,
    heads: int = 1,
    mask: MaskLike = None,
    dropout: float = 0.0,
    seed: Seed | None = None,
    attend: Callable[..., Array] = online_attention,
) -> Float[Array, "*batch tokens d_out"]:
    """`fused`, with the online softmax for the mechanism."""
    return fused.apply(
        x, parameters, heads=heads, mask=mask, dropout=dropout, seed=seed, attend=attend
    )


RUNG = Rung(
    name="tiled",
    idea="the softmax online, over blocks of keys: the same result in memory linear in the length",
    equation="m' = max(m, max s),  l' = e^(m-m') l + sum e^(s-m'),  c' = e^(m-m') c + e^(s-m') V",
    source="Milakov and Gimelshein 2018; Dao et al. 2022 (FlashAttention)",
    function=apply,
    shapes=fused.shapes,
    example=fused.RUNG.example,
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
