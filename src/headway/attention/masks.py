"""Masks: predicates on positions that say which key each query may attend to.

Kernels read the structure of a mask (`band`); the complete matrix is made only on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from operator import and_, or_
from typing import NamedTuple, final

from jaxtyping import Bool, Float, Int, Shaped

from headway.attention.arrays import Array, namespace
from headway.attention.grid import Grid, grid_of
from headway.attention.spec import Spec

Predicate = Callable[[Array, Array, Array, Array], Array]


class Band(NamedTuple):
    """The cells with least <= query - key <= most."""

    least: float = -inf
    most: float = inf

    def __and__(self, other: Band) -> Band:
        return Band(max(self.least, other.least), min(self.most, other.most))


@final
class Mask:
    """A mask from a predicate: `Mask(lambda batch, head, query, key: key <= query)`.

    True means that the query may attend to the key. The predicate gets index arrays that
    broadcast. Masks compose with `&`, `|` and `~`, also with arrays (..., heads, queries, keys).

    predicate: the function; None if the mask contains an array, which cannot be evaluated by
    position. band: no cell outside this band is allowed. is_band: every cell inside the band is
    allowed. Kernels use these attributes to avoid the complete matrix.
    """

    __array_ufunc__ = None  # makes `array & mask` call __rand__
    __array_priority__ = 1000

    def __init__(
        self, predicate: Predicate, name: str = "custom", *, band: Band | None = None
    ) -> None:
        self.name = name
        self.band, self.is_band = band or Band(), band is not None
        self.predicate: Predicate | None = predicate
        self._on: Callable[[Grid], Bool[Array, "..."]] = lambda grid: predicate(
            grid.batch, grid.head, grid.query, grid.key
        )

    @classmethod
    def _of_grid(cls, on: Callable[[Grid], Array], name: str) -> Mask:
        """A mask that contains an array."""
        mask = cls(lambda *_: True, name)
        mask.predicate, mask._on = None, on
        return mask

    def on(self, grid: Grid) -> Bool[Array, "..."]:
        """Evaluate the mask at the cells of a grid."""
        return self._on(grid)

    def _combined(self, operation: Callable[[Array, Array], Array], other: Mask, name: str) -> Mask:
        one, two = self.predicate, other.predicate
        if one is None or two is None:
            return self._of_grid(lambda grid: operation(self.on(grid), other.on(grid)), name)
        # This function refers to no Mask, because compilers of kernels do not know this class.
        return Mask(lambda *indices: operation(one(*indices), two(*indices)), name)

    def __and__(self, other: Mask | Bool[Array, "..."]) -> Mask:
        other = as_mask(other)
        both = self._combined(and_, other, f"{self} & {other}")
        both.band, both.is_band = self.band & other.band, self.is_band and other.is_band
        return both

    def __or__(self, other: Mask | Bool[Array, "..."]) -> Mask:
        other = as_mask(other)
        return self._combined(or_, other, f"({self} | {other})")

    def __rand__(self, other: Bool[Array, "..."]) -> Mask:
        return as_mask(other) & self

    def __ror__(self, other: Bool[Array, "..."]) -> Mask:
        return as_mask(other) | self

    def __invert__(self) -> Mask:
        predicate, name = self.predicate, f"~({self})"
        if predicate is None:
            return self._of_grid(lambda grid: ~self.on(grid), name)
        return Mask(lambda *indices: ~predicate(*indices), name)

    def __repr__(self) -> str:
        return self.name


def as_mask(mask: Mask | Shaped[Array, "..."]) -> Mask:
    """Convert a boolean array to a Mask. Raises ValueError for an array of numbers."""
    if isinstance(mask, Mask):
        return mask
    if not hasattr(mask, "dtype") or mask.dtype != namespace(mask).bool:
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise ValueError(
            f"mask must be a Mask or a boolean array (True = may attend), got {kind}; "
            "numbers to add to the scores must be passed as bias"
        )
    return Mask._of_grid(lambda grid: grid.cells_of(mask, "mask"), f"array{tuple(mask.shape)}")


def both(mask: Mask | None, other: Mask) -> Mask:
    """`mask & other`, where None is a mask that allows everything."""
    return other if mask is None or mask is other else mask & other


def materialize(
    queries: Float[Array, "*batch heads queries d"],
    keys: Float[Array, "*batch kv_heads keys d"],
    spec: Spec,
) -> Bool[Array, "*batch heads queries keys"]:
    """The mask of a Spec as a complete matrix; the Spec must have a mask."""
    assert spec.mask is not None  # the caller checks this
    grid = grid_of(queries, keys, spec)
    return namespace(queries).broadcast_to(spec.mask.on(grid), grid.shape)


causal = Mask(lambda batch, head, query, key: key <= query, "causal", band=Band(least=0))


def window(width: int) -> Mask:
    """A sliding window: 0 <= query - key < width.

    Each query may attend to `width` keys: the key at its position and those just before it.
    """
    if width < 1:
        raise ValueError(f"window must be at least 1 (got {width})")
    return Mask(
        lambda batch, head, query, key: (key <= query) & (query - key < width),
        f"window({width})",
        band=Band(0, width - 1),
    )


def padding(lengths: Int[Array, "..."]) -> Mask:
    """A mask that allows only the first lengths[batch] keys; the other keys are padding."""
    return Mask(lambda batch, head, query, key: key < lengths.reshape((-1,))[batch], "padding")


def documents(ids: Int[Array, "... tokens"], first: int | Int[Array, ""] = 0) -> Mask:
    """A mask for documents packed into one row: query q may attend to key k if ids[q] == ids[k].

    first: the index of the first row, as `batch_offset` of a Spec.
    """

    def same(batch: Array, head: Array, query: Array, key: Array) -> Array:
        rows = ids.reshape((-1, ids.shape[-1]))
        before = query < 0  # with more queries than keys, the first ones belong to no document
        row = batch - first
        return ~before & (rows[row, query * ~before] == rows[row, key])

    return Mask(same, "documents")


def ended_by(token: int, tokens: Int[Array, "batch tokens"], spec: Spec) -> Spec:
    """Return a Spec that also masks the documents from each other; `token` ends each of them."""
    ends = namespace(tokens).astype(tokens == token, tokens.dtype)
    mask = documents(ends.cumsum(-1) - ends, spec.batch_offset)
    return spec._replace(mask=both(spec.mask, mask))
