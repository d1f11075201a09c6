"""The reference for masks: predicates `(batch, head, query_position, key_position) -> bool`."""

from collections.abc import Callable, Sequence

import numpy as np

from headway.reference import Mask

Predicate = Callable[[int, int, int, int], bool]


def causal(batch: int, head: int, query_position: int, key_position: int) -> bool:
    """Whether the key is not later than the query."""
    return key_position <= query_position


def window(width: int) -> Predicate:
    """A token attends to `width` keys: itself and those just before it."""
    return lambda batch, head, q, k: 0 <= q - k < width


def padding(lengths: Sequence[int]) -> Predicate:
    """Only the first `lengths[batch]` keys are allowed; the others are padding."""
    return lambda batch, head, q, k: bool(k < lengths[batch])


def documents(ids: Sequence[Sequence[int]]) -> Predicate:
    """Tokens attend only to tokens of the same document: `ids[batch][position]`.

    A query before position 0 belongs to no document.
    """
    return lambda batch, head, q, k: q >= 0 and bool(ids[batch][q] == ids[batch][k])


def matrix(
    predicate: Predicate,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    offset: int | Sequence[int] | None = None,
) -> Mask:
    """Evaluate a predicate at every cell (batch, heads, queries, keys); see `offsets`."""
    allowed = np.zeros((batch, heads, queries, keys), dtype=np.bool_)
    for b, first in enumerate(offsets(offset, batch, queries, keys)):
        for h in range(heads):
            for row in range(queries):
                for k in range(keys):
                    allowed[b, h, row, k] = predicate(b, h, first + row, k)
    return allowed


def offsets(offset: int | Sequence[int] | None, batch: int, queries: int, keys: int) -> list[int]:
    """The position of the first query for each batch row, from one offset or one per row.

    By default the last query is aligned with the last key, as with a cache of earlier keys.
    """
    first = np.broadcast_to(keys - queries if offset is None else offset, (batch,))
    return [int(position) for position in first]
