"""Dropout without a generator: whether a cell is kept is a hash of where it stands.

Integer arithmetic modulo 2**32 is the same everywhere, so every engine drops the same cells, in
whatever order it visits them.
"""

import math

WORD = 2**32


def mix(x: int) -> int:
    """Scramble 32 bits, one to one: Chris Wellons' "lowbias32" (Prospecting for hash functions)."""
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    x ^= x >> 16
    return x


def state(*parts: int) -> int:
    """One 32-bit hash of several integers, in their order."""
    result = 0
    for part in parts:
        # mix(0) is 0; the constant (2**32 over the golden ratio) keeps a part of 0 from vanishing.
        result = mix(result ^ mix((part + 0x9E3779B9) % WORD))
    return result


def keep(parts: tuple[int, ...], rate: float) -> bool:
    """Does the cell named by `parts` survive dropout at `rate`?

    The hash is read as a signed integer, because that is what every engine can compare.
    In attention the parts are (*seed, batch, head, query_position, key_position).
    """
    unsigned = state(*parts)
    signed = unsigned - WORD if unsigned >= WORD // 2 else unsigned
    return signed >= math.floor(rate * WORD) - WORD // 2
