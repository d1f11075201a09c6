"""Tokens in many arrays, mostly memory maps of files, that are read as one array."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, final

import numpy as np


@final
class Shards:
    """Arrays of tokens as one read-only array with one dimension.

    An index is an integer, a slice or an array of integers of any shape; the result is an array.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        # A view of a memory map as a plain array is faster to index.
        self._arrays = [np.asarray(array) for array in arrays if len(array)]
        self._ends = np.cumsum([len(array) for array in self._arrays], dtype=np.int64)
        self._dtype = np.result_type(*self._arrays) if self._arrays else np.dtype(np.uint16)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._at(np.array(range(*index.indices(len(self))), np.int64))
        return self._at(np.asarray(index))

    def split(self, cut: int) -> tuple["Shards", "Shards"]:
        """Return the first `cut` tokens and the others, without reading them."""
        ends = self._ends.tolist()
        pairs = [(a, max(0, cut - end + len(a))) for a, end in zip(self._arrays, ends, strict=True)]
        return Shards([array[:n] for array, n in pairs]), Shards([array[n:] for array, n in pairs])

    def _at(self, index: np.ndarray) -> Any:
        if index.dtype.kind not in "iu":
            raise TypeError(f"tokens are indexed by integers (got {index.dtype})")
        flat = index.ravel().astype(np.int64)
        flat[flat < 0] += len(self)
        outside = (flat < 0) | (flat >= len(self))
        if outside.any():
            raise IndexError(f"index {flat[outside][0]} is outside the {len(self):,} tokens")
        tokens = np.empty(len(flat), self._dtype)
        numbers = np.searchsorted(self._ends, flat, side="right")
        # A window is in one array, or in a few: read each sequence of indices in the same array.
        changes = np.flatnonzero(np.diff(numbers)) + 1
        for first, last in pairwise([0, *changes.tolist(), len(flat)] if len(flat) else []):
            array, end = self._arrays[numbers[first]], self._ends[numbers[first]]
            tokens[first:last] = array[flat[first:last] - (end - len(array))]
        return tokens.reshape(index.shape)[()]
