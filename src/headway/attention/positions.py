"""Position encodings. Without them, attention does not depend on the order of the tokens.

Learned position embeddings are rows of a parameter, so there is no function for them.
"""

from math import floor, log2

from jaxtyping import Float, Int

from headway.attention.arrays import Array, device, integers, namespace


def sinusoidal(
    positions: Int[Array, "..."], dim: int, like: Float[Array, "..."]
) -> Float[Array, "... {dim}"]:
    """Sinusoidal encoding: column 2i is sin(a) and 2i + 1 is cos(a), a = position / 10000^(2i/dim).

    Vaswani et al. 2017, section 3.5. The encoding is added to the embeddings. It has the dtype of
    `like`, but is computed in float32 or wider.
    """
    xp = namespace(like)
    angles = _angles(positions, dim, 10000.0, like)
    pairs = xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)
    return xp.astype(pairs.reshape((*positions.shape, dim)), like.dtype)


def rotary(
    x: Float[Array, "... tokens dim"], positions: Int[Array, "... tokens"], theta: float = 10000.0
) -> Float[Array, "... tokens dim"]:
    """Rotate each pair (i, i + dim/2) of queries or keys by the angle position / theta^(2i/dim).

    Su et al. 2021 (RoPE), half-split as in Llama. The dot product of a rotated query and a rotated
    key depends only on the difference of their positions.
    """
    xp = namespace(x)
    angles = _angles(positions, x.shape[-1], theta, x)
    cos, sin = xp.astype(xp.cos(angles), x.dtype), xp.astype(xp.sin(angles), x.dtype)
    return rotate(x, cos, sin)


def rotate(
    x: Float[Array, "... tokens dim"],
    cos: Float[Array, "... tokens half"],
    sin: Float[Array, "... tokens half"],
    interleaved: bool = False,
) -> Float[Array, "... tokens dim"]:
    """Rotate each pair of features by an angle, given by its cosine and sine.

    The pairs are (i, i + dim/2), as in Llama, or (2i, 2i + 1) if interleaved, as in the paper
    (Su et al. 2021, equation 15). Raises ValueError unless there is one angle for each pair.
    """
    for angles in (cos.shape[-1], sin.shape[-1]):
        if 2 * angles != x.shape[-1]:
            raise ValueError(f"{x.shape[-1]} features need half as many angles (got {angles})")
    xp = namespace(x)
    if interleaved:
        first, second = x[..., ::2], x[..., 1::2]
    else:
        first, second = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    halves = [first * cos - second * sin, second * cos + first * sin]
    return xp.stack(halves, axis=-1).reshape(x.shape) if interleaved else xp.concat(halves, axis=-1)


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head: 2^(-8/heads), 2^(-16/heads) ...  (Press et al. 2022, section 3).

    If heads is not a power of two, let p be the power of two below it. As in the authors' code, the
    first p heads get the slopes for p heads, the others every second slope for 2p heads.
    """
    power = 2 ** floor(log2(heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2 ** (-4 * (h + 1) / power) for h in range(0, 2 * (heads - power), 2)]
    return slopes + between


def alibi(
    heads: int, query_positions: Int[Array, " queries"], key_positions: Int[Array, " keys"]
) -> Float[Array, "{heads} queries keys"]:
    """A bias for the scores: -slope * |query - key|  (Press et al. 2022)."""
    xp = namespace(query_positions)
    slopes = xp.asarray(alibi_slopes(heads), device=device(query_positions))
    distance = xp.abs(query_positions[:, None] - key_positions)
    return -slopes[:, None, None] * distance


def relative(
    table: Float[Array, "heads distances"],
    query_positions: Int[Array, " queries"],
    key_positions: Int[Array, " keys"],
) -> Float[Array, "heads queries keys"]:
    """A learned bias per head and distance: table[h, clip(key - query, -reach, reach) + reach].

    The table has 2 * reach + 1 columns. Distances are clipped as in Shaw et al. 2018; the bias is
    one number that is added to the score, as in Raffel et al. 2020 (T5).
    """
    reach = (table.shape[-1] - 1) // 2
    distance = key_positions - query_positions[:, None]
    return table[:, namespace(table).clip(distance, -reach, reach) + reach]


def _angles(
    positions: Int[Array, "..."], dim: int, theta: float, like: Array
) -> Float[Array, "... half"]:
    """The angles position / theta^(2i/dim), in float32 or, if `like` has a wider dtype, in that."""
    if dim % 2:
        raise ValueError(f"positions need an even number of features (got {dim})")
    xp = namespace(like)
    wide = xp.result_type(like.dtype, xp.float32)  # bfloat16 cannot represent position 257
    positions = xp.astype(positions, wide)[..., None]
    exponents = xp.astype(integers(dim // 2, positions), wide) * (-2 / dim)
    return positions * theta**exponents
