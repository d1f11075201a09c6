"""Who may attend to whom: predicates on positions that compose with `&`, `|` and `~`.

A mask is a structure first (kernels ask for it by `terms`) and a matrix only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod
from typing import NamedTuple, final

from jaxtyping import Bool, Float, Int, Shaped

from headway.attention.arrays import Array, device, integers, namespace

Offset = int | Int[Array, "..."] | None


class Cells(NamedTuple):
    """The indices of the cells of a matrix of scores (..., heads, queries, keys), broadcasting.

    batch (..., 1, 1, 1), head (heads, 1, 1), query (..., queries, 1) and key (keys,) are int32;
    `heads`, `rows` and `columns` say which part of the whole matrix these cells are.
    """

    shape: tuple[int, ...]  # of the whole matrix
    batch: Array
    head: Array
    query: Array
    key: Array
    heads: slice = slice(None)
    rows: slice = slice(None)
    columns: slice = slice(None)

    def rows_only(self, rows: slice) -> Cells:
        """The same, of some rows (queries) only."""
        return self._replace(query=self.query[..., rows, :], rows=rows)

    def heads_only(self, heads: slice) -> Cells:
        """The same, of some heads only."""
        return self._replace(head=self.head[heads], heads=heads)

    def columns_only(self, columns: slice) -> Cells:
        """The same, of some columns (keys) only."""
        return self._replace(key=self.key[columns], columns=columns)

    def of(self, array: Shaped[Array, "..."], what: str) -> Shaped[Array, "..."]:
        """These cells of an array that broadcasts from the right to the whole matrix.

        Raises ValueError when it does not.
        """
        pairs = list(zip(reversed(array.shape), reversed(self.shape), strict=False))
        fits = 2 <= array.ndim <= len(self.shape) and all(n in (1, full) for n, full in pairs)
        if not fits:
            raise ValueError(
                f"the {what} {tuple(array.shape)} does not broadcast to (..., heads, queries, "
                f"keys) = {self.shape}; for padding use padding(lengths) or (batch, 1, 1, keys)"
            )
        parts = (self.heads, self.rows, self.columns)[-array.ndim :]
        sizes = array.shape[-len(parts) :]
        taken = [part if size > 1 else slice(None) for part, size in zip(parts, sizes, strict=True)]
        return array[..., *taken]


def cells(
    queries: Shaped[Array, "*batch heads queries d"],
    keys: Shaped[Array, "*batch kv_heads keys d"],
    offset: Offset = None,
) -> Cells:
    """The cells of the scores of these queries and keys.

    query_position = offset + row, where offset is an int or one int per batch row; by default
    keys - queries: the last query meets the last key.
    """
    xp = namespace(queries)
    *batch, heads, rows, _ = queries.shape
    columns = keys.shape[-2]
    first = columns - rows if offset is None else offset
    if not isinstance(first, int):
        first = xp.asarray(first, dtype=xp.int32, device=device(queries))
        first = first.reshape((*first.shape, 1, 1, 1))
    return Cells(
        shape=(*batch, heads, rows, columns),
        batch=integers(prod(batch), queries).reshape((*batch, 1, 1, 1)),
        head=integers(heads, queries).reshape((heads, 1, 1)),
        query=integers(rows, queries).reshape((rows, 1)) + first,
        key=integers(columns, queries),
    )


Predicate = Callable[[Array, Array, Array, Array], Array]


class Band(NamedTuple):
    """The cells with least <= query - key <= most."""

    least: float = -inf
    most: float = inf

    def __and__(self, other: Band) -> Band:
        return Band(max(self.least, other.least), min(self.most, other.most))


@final
class Mask:
    """`Mask(lambda batch, head, query, key: key <= query)`: True = may attend.

    The predicate gets index arrays that broadcast. Composes with `&`, `|` and `~`, with boolean
    arrays (..., heads, queries, keys) too.

    What a kernel can know without making the matrix: no cell outside `band` is allowed, and if
    `is_band` every cell inside is; `by_position` is False when an array (..., queries, keys) takes
    part, which cannot be asked cell by cell. `terms` are the masks of a conjunction.
    """

    __array_ufunc__ = None  # so that `array & mask` comes to __rand__
    __array_priority__ = 1000

    def __init__(
        self, predicate: Predicate, name: str = "custom", *, band: Band | None = None
    ) -> None:
        self.name = name
        self.terms: tuple[Mask, ...] = (self,)
        self.band, self.is_band = band or Band(), band is not None
        self.by_position = True
        self.on: Callable[[Cells], Bool[Array, "..."]] = lambda cells: predicate(
            cells.batch, cells.head, cells.query, cells.key
        )

    @classmethod
    def _from(cls, on: Callable[[Cells], Array], name: str, *parts: Mask) -> Mask:
        mask = cls(lambda *_: True, name)
        mask.on = on
        mask.by_position = bool(parts) and all(part.by_position for part in parts)
        return mask

    def __and__(self, other: Mask | Bool[Array, "..."]) -> Mask:
        other = as_mask(other)
        name = f"{self} & {other}"
        both = self._from(lambda cells: self.on(cells) & other.on(cells), name, self, other)
        both.terms = (*self.terms, *other.terms)
        both.band, both.is_band = self.band & other.band, self.is_band and other.is_band
        return both

    def __or__(self, other: Mask | Bool[Array, "..."]) -> Mask:
        other = as_mask(other)
        name = f"({self} | {other})"
        return self._from(lambda cells: self.on(cells) | other.on(cells), name, self, other)

    def __rand__(self, other: Bool[Array, "..."]) -> Mask:
        return as_mask(other) & self

    def __ror__(self, other: Bool[Array, "..."]) -> Mask:
        return as_mask(other) | self

    def __invert__(self) -> Mask:
        return self._from(lambda cells: ~self.on(cells), f"~({self})", self)

    def __repr__(self) -> str:
        return self.name


def as_mask(mask: Mask | Shaped[Array, "..."]) -> Mask:
    """A boolean array as a mask; a mask as it is. Raises ValueError for an array of numbers."""
    if isinstance(mask, Mask):
        return mask
    if not hasattr(mask, "dtype") or mask.dtype != namespace(mask).bool:
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise ValueError(
            f"a mask is a Mask or a boolean array (True = may attend), not {kind}; "
            "numbers to add to the scores are a bias"
        )
    return Mask._from(lambda cells: cells.of(mask, "mask"), f"array{tuple(mask.shape)}")


def both(mask: Mask | Bool[Array, "..."] | None, other: Mask) -> Mask:
    """`mask & other`, where no mask at all is None."""
    return other if mask is None else as_mask(mask) & other


def materialise(
    mask: Mask | Bool[Array, "..."],
    queries: Float[Array, "*batch heads queries d"],
    keys: Float[Array, "*batch kv_heads keys d"],
    offset: Offset = None,
) -> Bool[Array, "*batch heads queries keys"]:
    """The mask as one whole matrix."""
    where = cells(queries, keys, offset)
    return namespace(queries).broadcast_to(as_mask(mask).on(where), where.shape)


causal = Mask(lambda batch, head, query, key: key <= query, "causal", band=Band(least=0))


def window(width: int) -> Mask:
    """0 <= query - key < width: a query sees `width` keys, itself included."""
    if width < 1:
        raise ValueError(f"a window has a width of 1 or more: {width} is not")
    return Mask(
        lambda batch, head, query, key: (key <= query) & (query - key < width),
        f"window({width})",
        band=Band(0, width - 1),
    )


def padding(lengths: Int[Array, "..."]) -> Mask:
    """Keys from lengths[batch] on are padding, which nobody sees."""
    return Mask(lambda batch, head, query, key: key < lengths.reshape((-1,))[batch], "padding")


def documents(ids: Int[Array, "... tokens"]) -> Mask:
    """Tokens packed into one row see only those of their own document: ids[q] == ids[k]."""

    def same(batch: Array, head: Array, query: Array, key: Array) -> Array:
        rows = ids.reshape((-1, ids.shape[-1]))
        before = query < 0  # more queries than keys: the first lie before the first document
        return ~before & (rows[batch, query * ~before] == rows[batch, key])

    return Mask(same, "documents")
