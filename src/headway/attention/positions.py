"""Position encodings. Without them, attention does not depend on the order of the tokens.

Learned position embeddings are rows of a parameter, so there is no function for them.
"""

from dataclasses import dataclass
from math import ceil, floor, isfinite, log, log2, pi
from typing import Any, Literal

from jaxtyping import Float, Int

from headway.attention.arrays import Array, integers, namespace, wide


def sinusoidal(
    positions: Int[Array, "..."], dim: int, like: Float[Array, "..."]
) -> Float[Array, "... {dim}"]:
    """Sinusoidal encoding: column 2i is sin(a) and 2i + 1 is cos(a), a = position / 10000^(2i/dim).

    Vaswani et al. 2017, section 3.5. The encoding is added to the embeddings. It has the dtype of
    `like`, but is computed in float32 or wider.
    """
    xp = namespace(like)
    angles = _spread(positions, like) * _frequencies(10000.0, dim, like)
    pairs = xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)
    return xp.astype(pairs.reshape((*positions.shape, dim)), like.dtype)


@dataclass(frozen=True)
class Rotary:
    """Rotary positions, with one of the scalings by which a model reads longer texts than before.

    Raises ValueError for an unknown scaling and for numbers that do not fit it.

    Attributes
    ----------
    theta
        Base of the angles: pair i of d features is rotated by position * theta^(-2i/d).
    scaling
        none; linear: all angles are divided by the factor (Chen et al. 2023); dynamic: theta grows
        with the length of the text (NTK-aware); llama3 (Llama 3.1) and yarn (Peng et al. 2023):
        only the pairs that rotate slowly are divided by the factor.
    factor
        Factor of the scaling.
    original
        Number of tokens for which the model was trained before the scaling.
    slow
        For llama3 and yarn: the factor divides the angles of a pair with fewer rotations than this
        in the original number of tokens.
    fast
        For llama3 and yarn: the factor does not apply to a pair with more rotations than this;
        between slow and fast, the scaling changes gradually.
    amplitude
        For yarn: the factor of the rotated queries and keys.
    truncate
        For yarn: whether the limits between slow and fast pairs are rounded to whole pairs.
    """

    theta: float = 10000.0
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original: int = 0
    slow: float = 1.0
    fast: float = 32.0
    amplitude: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise ValueError(f"scaling must be one of {', '.join(SCALINGS)} (got {self.scaling!r})")
        positive = {"theta": self.theta, "factor": self.factor, "amplitude": self.amplitude}
        if self.scaling not in ("none", "linear"):
            positive["original"] = self.original
        for name, value in positive.items():
            if not (value > 0 and isfinite(value)):
                raise ValueError(f"{name} of rotary positions must be above 0 (got {value})")
        if self.scaling in ("llama3", "yarn") and not 0 < self.slow < self.fast:
            raise ValueError(
                f"slow must be above 0 and below fast (got slow {self.slow}, fast {self.fast})"
            )

    def rotate(
        self,
        x: Float[Array, "... tokens dim"],
        positions: Int[Array, "... tokens"],
        length: int | Int[Array, ""] = 0,
    ) -> Float[Array, "... tokens dim"]:
        """Rotate queries or keys at these positions; length: as in `rotation`."""
        return rotate(x, *self.rotation(positions, x.shape[-1], length, x))

    def rotation(
        self,
        positions: Int[Array, "... tokens"],
        dim: int,
        length: int | Int[Array, ""],
        like: Float[Array, "..."],
    ) -> tuple[Float[Array, "... tokens half"], Float[Array, "... tokens half"]]:
        """The cosines and sines with which to `rotate` dim features, in the dtype of `like`.

        length: the number of tokens of the text, on which the scaling `dynamic` depends.
        """
        xp = namespace(like)
        angles = _spread(positions, like) * self._frequencies(dim, length, like)
        cos, sin = (self.amplitude * part(angles) for part in (xp.cos, xp.sin))
        return xp.astype(cos, like.dtype), xp.astype(sin, like.dtype)

    def _frequencies(
        self, dim: int, length: int | Int[Array, ""], like: Array
    ) -> Float[Array, " half"]:
        """The angle per position of each pair of features."""
        theta: Any = self.theta
        if self.scaling == "dynamic":
            stretch: Any = self.factor * length / self.original - (self.factor - 1)
            stretch = max(stretch, 1.0) if isinstance(length, int) else stretch.clip(1.0)
            theta = theta * stretch ** (dim / (dim - 2))
        frequencies = _frequencies(theta, dim, like)
        if self.scaling == "linear":
            return frequencies / self.factor
        if self.scaling in ("none", "dynamic"):
            return frequencies
        xp = namespace(like)
        if self.scaling == "llama3":  # between slow and fast, linear in the number of rotations
            rotations = self.original * frequencies / (2 * pi)
            is_fast = (rotations - self.slow) / (self.fast - self.slow)
        else:  # linear in the number of the pair
            first, last = self._pair(self.fast, dim), self._pair(self.slow, dim)
            if self.truncate:
                first, last = floor(first), ceil(last)
            first, last = max(first, 0), min(last, dim - 1)
            pair = xp.astype(integers(dim // 2, like), frequencies.dtype)
            is_fast = 1 - (pair - first) / (last - first or 0.001)
        is_fast = xp.clip(is_fast, 0.0, 1.0)
        return frequencies * is_fast + frequencies / self.factor * (1 - is_fast)

    def _pair(self, rotations: float, dim: int) -> float:
        """The number of the pair with so many rotations in the original number of tokens."""
        return dim * log(self.original / (rotations * 2 * pi)) / (2 * log(self.theta))


SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn")


def rotary(
    x: Float[Array, "... tokens dim"], positions: Int[Array, "... tokens"], theta: float = 10000.0
) -> Float[Array, "... tokens dim"]:
    """Rotate each pair (i, i + dim/2) of queries or keys by the angle position / theta^(2i/dim).

    Su et al. 2021 (RoPE), half-split as in Llama. The dot product of a rotated query and a rotated
    key depends only on the difference of their positions.
    """
    return Rotary(theta).rotate(x, positions)


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
    cos, sin = (xp.astype(angles, x.dtype, copy=False) for angles in (cos, sin))
    halves = [first * cos - second * sin, second * cos + first * sin]
    return xp.stack(halves, axis=-1).reshape(x.shape) if interleaved else xp.concat(halves, axis=-1)


def alibi_slopes(heads: int, like: Int[Array, "..."]) -> Float[Array, "{heads}"]:
    """The slope of each head: 2^(-8/heads), 2^(-16/heads) ...  (Press et al. 2022, section 3).

    If heads is not a power of two, let p be the power of two below it. As in the authors' code, the
    first p heads get the slopes for p heads, the others every second slope for 2p heads. They are
    computed on the device of `like`.
    """
    head, power = integers(heads, like), 2 ** floor(log2(heads))
    between = (2 * (head - power) + 1) * (4 / power)
    return 2.0 ** -namespace(like).where(head < power, (head + 1) * (8 / power), between)


def alibi(
    heads: int, query_positions: Int[Array, " queries"], key_positions: Int[Array, " keys"]
) -> Float[Array, "{heads} queries keys"]:
    """A bias for the scores: -slope * |query - key|  (Press et al. 2022)."""
    xp = namespace(query_positions)
    slopes = alibi_slopes(heads, query_positions)
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


def _spread(positions: Int[Array, "..."], like: Array) -> Float[Array, "... 1"]:
    """The positions in float32 or, if `like` has a wider dtype, in that."""
    xp = namespace(like)  # bfloat16 cannot represent position 257
    return xp.astype(positions, wide(like))[..., None]


def _frequencies(theta: float | Array, dim: int, like: Array) -> Float[Array, " half"]:
    """theta^(-2i/dim) for every pair i of features, in float32 or wider."""
    if dim % 2:
        raise ValueError(f"positions need an even number of features (got {dim})")
    xp = namespace(like)
    return theta ** (xp.astype(integers(dim // 2, like), wide(like)) * (-2 / dim))
