"""The reference for four position encodings."""

import math
from collections.abc import Collection

import numpy as np

from headway.reference import Array


def sinusoidal(tokens: int, dim: int) -> Array:
    """The encoding that is added to the embeddings, (tokens, dim): Vaswani et al. 2017, 3.5.

    An even column is the sine of an angle; the next column is the cosine of the same angle.
    """
    table = np.zeros((tokens, dim))
    for position in range(tokens):
        for column in range(dim):
            pair = column // 2
            angle = position / 10000.0 ** (2 * pair / dim)
            table[position, column] = math.sin(angle) if column % 2 == 0 else math.cos(angle)
    return table


def rotary(x: Array, positions: Collection[int], theta: float = 10000.0) -> Array:
    """Rotate each pair of columns (i, i + dim/2) by position * theta**(-2i/dim); dim is even.

    x and the result (tokens, dim). Su et al. 2021, section 3.2.2, with the pairing of GPT-NeoX
    and Llama. The dot product of two results depends only on the difference of their positions.
    """
    tokens, dim = x.shape
    half = dim // 2
    rotated = np.zeros((tokens, dim))
    for t, position in enumerate(positions):
        for i in range(half):
            angle = position * theta ** (-2 * i / dim)
            first, second = float(x[t, i]), float(x[t, i + half])
            rotated[t, i] = first * math.cos(angle) - second * math.sin(angle)
            rotated[t, i + half] = second * math.cos(angle) + first * math.sin(angle)
    return rotated


def alibi_slopes(heads: int) -> Array:
    """One slope per head, (heads,): Press et al. 2022, section 3.

    For a power of two the slopes are 2**(-8/heads), 2**(-16/heads) ... 2**-8. Otherwise they are
    the slopes of the next lower power of two, followed by every second slope of the next higher
    one, as in the authors' code.
    """
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (h + 1) / below) for h in range(below)]
    above = [2.0 ** (-8 * (h + 1) / (2 * below)) for h in range(0, 2 * below, 2)]
    return np.array(slopes + above[: heads - below])


def alibi(heads: int, query_positions: Collection[int], key_positions: Collection[int]) -> Array:
    """The bias -slope * |q - k|, (heads, Tq, Tk): Press et al. 2022, section 3."""
    bias = np.zeros((heads, len(query_positions), len(key_positions)))
    for h, slope in enumerate(alibi_slopes(heads)):
        for row, q in enumerate(query_positions):
            for column, k in enumerate(key_positions):
                bias[h, row, column] = -slope * abs(int(q) - int(k))
    return bias


def relative(
    table: Array, query_positions: Collection[int], key_positions: Collection[int]
) -> Array:
    """A learned bias for each distance k - q, clipped to +-reach, (heads, Tq, Tk).

    table (heads, 2 * reach + 1); the middle column is for distance 0. Distances are clipped as in
    Shaw et al. 2018, section 3.2; the bias is one number per head and distance, as in Raffel et
    al. 2020, section 2.1.
    """
    heads, columns = table.shape
    reach = columns // 2
    bias = np.zeros((heads, len(query_positions), len(key_positions)))
    for h in range(heads):
        for row, q in enumerate(query_positions):
            for column, k in enumerate(key_positions):
                distance = max(-reach, min(reach, int(k) - int(q)))
                bias[h, row, column] = table[h, distance + reach]
    return bias
