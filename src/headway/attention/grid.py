"""The positions of the query and the key of each cell in a matrix of scores."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from jaxtyping import Shaped

from headway.attention.arrays import Array, device, integers, namespace
from headway.attention.spec import Spec


class Grid(NamedTuple):
    """The cells of a matrix of scores (..., heads, queries, keys), as positions that broadcast.

    batch (..., 1, 1, 1), head (heads, 1, 1), query (..., queries, 1) and key (keys,) are int32.
    heads, rows, columns: the slices of the complete matrix that contain these cells.
    """

    shape: tuple[int, ...]  # of the complete matrix
    batch: Array
    head: Array
    query: Array
    key: Array
    heads: slice
    rows: slice
    columns: slice

    def select(
        self, *, heads: slice = slice(None), rows: slice = slice(None), columns: slice = slice(None)
    ) -> Grid:
        """A part of the complete matrix: some heads, some rows (queries), some columns (keys)."""
        return self._replace(
            head=self.head[heads],
            query=self.query[..., rows, :],
            key=self.key[columns],
            heads=heads,
            rows=rows,
            columns=columns,
        )

    def cells_of(self, array: Shaped[Array, "..."], what: str) -> Shaped[Array, "..."]:
        """Select the values at these cells from an array that broadcasts to the complete matrix.

        what: the name of the array in error messages. Raises ValueError if it does not broadcast.
        """
        pairs = list(zip(reversed(array.shape), reversed(self.shape), strict=False))
        fits = 2 <= array.ndim <= len(self.shape) and all(n in (1, full) for n, full in pairs)
        if not fits:
            raise ValueError(
                f"the {what} of shape {tuple(array.shape)} does not broadcast to (..., heads, "
                f"queries, keys) = {self.shape}; for padding use padding(lengths) or "
                "(batch, 1, 1, keys)"
            )
        parts = (self.heads, self.rows, self.columns)[-array.ndim :]
        sizes = array.shape[-len(parts) :]
        index = [part if size > 1 else slice(None) for part, size in zip(parts, sizes, strict=True)]
        return array[..., *index]

    def of_heads(self, array: Shaped[Array, " heads"], what: str) -> Shaped[Array, "chosen 1 1"]:
        """Select the numbers of these heads from an array with one number per head.

        what: the name of the array in error messages. Raises ValueError for another shape.
        """
        if tuple(array.shape) != self.shape[-3:-2]:
            raise ValueError(
                f"{what} must have one number per head, shape {self.shape[-3:-2]}; "
                f"got {tuple(array.shape)}"
            )
        return array[self.heads].reshape((-1, 1, 1))


def first_position(queries: Array, keys: Array, spec: Spec) -> Any:
    """The position of the first query; by default the last query is aligned with the last key."""
    return keys.shape[-2] - queries.shape[-2] if spec.offset is None else spec.offset


def grid_of(
    queries: Shaped[Array, "*batch heads queries d"],
    keys: Shaped[Array, "*batch kv_heads keys d"],
    spec: Spec,
) -> Grid:
    """The cells of the scores of these queries and keys.

    query position = spec.offset + row, batch index = spec.batch_offset + row of the batch.
    """
    xp = namespace(queries)
    *batch, heads, rows, _ = queries.shape
    columns, first = keys.shape[-2], first_position(queries, keys, spec)
    if not isinstance(first, int):
        first = xp.asarray(first, dtype=xp.int32, device=device(queries))
        first = first.reshape((*first.shape, 1, 1, 1))
    return Grid(
        shape=(*batch, heads, rows, columns),
        batch=integers(prod(batch), queries).reshape((*batch, 1, 1, 1)) + spec.batch_offset,
        head=integers(heads, queries).reshape((heads, 1, 1)),
        query=integers(rows, queries).reshape((rows, 1)) + first,
        key=integers(columns, queries),
        heads=slice(None),  # as defaults of the fields torch.compile of PyTorch 2.11 refuses them
        rows=slice(None),
        columns=slice(None),
    )
