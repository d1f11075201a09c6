"""Dropout without a random generator: a hash of the seed and the position decides for each cell.

Integer arithmetic modulo 2**32 gives the same result in every engine, so all engines drop the same
cells, in any order of computation.
"""

import math

WORD = 2**32


def mix(x: int) -> int:
    """Map 32 bits one to one to 32 bits: Chris Wellons' hash "lowbias32"."""
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    x ^= x >> 16
    return x


def state(*parts: int) -> int:
    """A 32-bit hash of several integers; their order matters."""
    result = 0
    for part in parts:
        # mix(0) is 0. The constant (2**32 / golden ratio) is added so that a 0 changes the hash.
        result = mix(result ^ mix((part + 0x9E3779B9) % WORD))
    return result


def keep(parts: tuple[int, ...], rate: float) -> bool:
    """Whether dropout at `rate` keeps the cell whose seed and position are `parts`.

    The hash is interpreted as a signed integer, which every engine can compare. In attention the
    parts are (*seed, batch, head, query_position, key_position).
    """
    unsigned = state(*parts)
    signed = unsigned - WORD if unsigned >= WORD // 2 else unsigned
    return signed >= math.floor(rate * WORD) - WORD // 2
