"""The mask and the bias of a call as complete matrices, for kernels that require matrices."""

from typing import NamedTuple

from headway.attention.arrays import Array, device, namespace
from headway.attention.grid import first_position, grid_of
from headway.attention.masks import causal
from headway.attention.spec import Spec


class Matrix(NamedTuple):
    """The mask and the bias of a call, changed so that every query may attend to some key.

    A query that may attend to no key attends to all keys here, so that its context and gradients
    are not NaN. Replace its context by 0 afterwards: where(any_allowed, context, 0).
    """

    allowed: Array  # boolean; broadcasts to the scores and has the same number of axes
    bias: Array | None  # numbers; -inf where not allowed
    any_allowed: Array  # boolean (..., queries, 1): whether the call allows the query any key


def matrix(queries: Array, keys: Array, spec: Spec) -> Matrix:
    """The `Matrix` of a call that has a mask, a bias or both."""
    xp = namespace(queries)
    grid = grid_of(queries, keys, spec)
    cells = (1,) * (len(grid.shape) - 2) + grid.shape[-2:]
    allowed = xp.ones(cells, dtype=xp.bool, device=device(queries))
    if spec.mask is not None:
        allowed = allowed & spec.mask.on(grid)
    bias = None if spec.bias is None else grid.cells_of(spec.bias, "bias")
    if bias is not None:
        allowed = allowed & (bias != -xp.inf)
    any_allowed = xp.any(allowed, axis=-1, keepdims=True)
    allowed = allowed | ~any_allowed
    if bias is not None:
        finite = xp.astype(xp.where(bias == -xp.inf, 0.0, bias), queries.dtype)
        bias = xp.where(allowed, finite, -xp.inf)
    return Matrix(allowed, bias, any_allowed)


def is_unmasked(queries: Array, keys: Array, spec: Spec) -> bool:
    """Whether every query may attend to every key, and there is no bias.

    This is also true of a causal mask with one query at the last position, as in decoding.
    """
    if spec.mask is None or spec.bias is not None:
        return spec.mask is None and spec.bias is None
    if not spec.mask.is_band or not (spec.offset is None or isinstance(spec.offset, int)):
        return False
    rows, columns = queries.shape[-2], keys.shape[-2]
    first = first_position(queries, keys, spec)
    least, most = spec.mask.band
    return bool(least <= first - (columns - 1) and first + rows - 1 <= most)


def is_causal_from_top_left(queries: Array, keys: Array, spec: Spec) -> bool:
    """Whether the only mask is causal and aligns the first query with the first key.

    This is what `is_causal` means in PyTorch and JAX.
    """
    is_causal = spec.mask is not None and spec.mask.is_band and spec.mask.band == causal.band
    if spec.bias is not None or not is_causal:
        return False
    if spec.offset is None:
        return bool(queries.shape[-2] == keys.shape[-2])
    return isinstance(spec.offset, int) and spec.offset == 0
