"""Dropout that depends only on a seed and the coordinates of a cell.

There is no random state, so NumPy, PyTorch, JAX, complete matrices, tiles and resumed runs drop
the same cells. The hash is Chris Wellons' "lowbias32", in 32-bit integer arithmetic.
"""

from __future__ import annotations

from math import floor

from jaxtyping import Bool, Float, Int

from headway.attention.arrays import Array, device, integers, namespace, wrapping_product
from headway.attention.grid import Grid
from headway.attention.spec import Seed, Spec, fold_seed

GOLDEN = 0x9E3779B9 - 2**32
ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1))


def keep(
    rate: float, seed: Seed, *coordinates: Int[Array, "..."], like: Array
) -> Bool[Array, "..."]:
    """Whether dropout keeps each cell: True with probability 1 - rate.

    coordinates: int32 arrays that broadcast to the shape of the result; their order matters.
    like: an array of the engine.
    """
    return keep_hashed(rate, hashed(seed, like), *coordinates)


def keep_hashed(
    rate: float, state: Int[Array, "1"], *coordinates: Int[Array, "..."]
) -> Bool[Array, "..."]:
    """`keep` for a seed that is already hashed."""
    return hashes(state, *coordinates) >= threshold(rate)


def hashes(state: Int[Array, "1"], *coordinates: Int[Array, "..."]) -> Int[Array, "..."]:
    """The hash of each cell, all 32 bits of which are random, for a seed that is already hashed."""
    for coordinate in coordinates:  # the state grows by broadcasting; the last has all cells
        state = _mixed(state, coordinate)
    return state


def hashed(seed: Seed, like: Array) -> Int[Array, "1"]:
    """The hash of a seed, to be mixed with the coordinates of a cell.

    Python integers are used where possible, because an array operation has a large fixed cost.
    """
    state: int | Array = 0
    for part in fold_seed(seed):
        state = _mixed(state, _wrapped(part) if isinstance(part, int) else _as_int32(part, like))
    return _as_int32(state, like)


def threshold(rate: float) -> int:
    """The threshold of the hashes: a fraction `rate` of all int32 numbers is below it."""
    return floor(rate * 2**32) - 2**31


def drop(x: Float[Array, "batch *features"], spec: Spec) -> Float[Array, "batch *features"]:
    """Set each number of x to 0 with probability spec.dropout; divide the others by 1 - dropout.

    "Inverted" dropout, Srivastava et al. 2014. A hash of the seed and of the index (i, j, ...) of
    a number decides, where i counts from spec.batch_offset. Raises ValueError for dropout without
    a seed.
    """
    if spec.dropout == 0:
        return x
    first, *others = (
        integers(size, x).reshape((size,) + (1,) * (x.ndim - 1 - axis))
        for axis, size in enumerate(x.shape)
    )
    return _dropped(x, spec, first + spec.batch_offset, *others)


def drop_cells(
    weights: Float[Array, "*batch heads queries keys"], spec: Spec, grid: Grid
) -> Float[Array, "*batch heads queries keys"]:
    """`drop` for attention weights, with the positions of the grid as the coordinates."""
    return _dropped(weights, spec, grid.batch, grid.head, grid.query, grid.key)


def check(spec: Spec) -> None:
    """Raise ValueError for dropout outside [0, 1), and for dropout without a seed."""
    if not 0 <= spec.dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1 (got {spec.dropout})")
    if spec.dropout and spec.seed is None:
        raise ValueError("dropout > 0 needs a seed, such as seed=(run_seed, step)")


def _dropped(x: Array, spec: Spec, *coordinates: Int[Array, "..."]) -> Array:
    check(spec)
    assert spec.seed is not None  # `check` ensures this
    is_kept = keep(spec.dropout, spec.seed, *coordinates, like=x)
    return namespace(x).where(is_kept, x / (1 - spec.dropout), 0.0)


def _as_int32(part: int | Array, like: Array) -> Int[Array, "1"]:
    xp = namespace(like)
    # One element, because NumPy warns if a scalar overflows, which is intended here.
    if isinstance(part, int):  # to copy a number to a GPU would wait for the GPU
        return xp.full((1,), part, dtype=xp.int32, device=device(like))
    return xp.asarray(part, dtype=xp.int32, device=device(like)).reshape((1,))


def _mixed(state: int | Array, part: int | Array) -> int | Array:
    return _mix(state ^ _mix(_wrapped(part + GOLDEN)))


def _mix(x: int | Array) -> int | Array:
    for shift, factor in ROUNDS:
        # >> copies the sign bit, but the hash needs zeros on the left; & sets them.
        x = x ^ ((x >> shift) & (2 ** (32 - shift) - 1))
        x = _wrapped(x * factor) if isinstance(x, int) else wrapping_product(x, factor)
    return x


def _wrapped(x: int | Array) -> int | Array:
    """Wrap a Python integer to 32 bits; arrays of int32 wrap automatically."""
    return (x + 2**31) % 2**32 - 2**31 if isinstance(x, int) else x
