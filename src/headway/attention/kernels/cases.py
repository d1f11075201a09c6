"""The shapes that tests and benchmarks share.

Most axes of a case differ in size, so that a swap of two axes is detected.
"""

from typing import Any, NamedTuple


class Case(NamedTuple):
    """The sizes of one call of `attend`, and those of its options that are not arrays."""

    batch: tuple[int, ...]
    heads: int
    kv_heads: int
    queries: int
    keys: int
    d_k: int
    d_v: int
    options: dict[str, Any]

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The shapes of queries, keys and values."""
        return (
            (*self.batch, self.heads, self.queries, self.d_k),
            (*self.batch, self.kv_heads, self.keys, self.d_k),
            (*self.batch, self.kv_heads, self.keys, self.d_v),
        )


CASES: dict[str, Case] = {
    "self": Case((2,), 3, 3, 5, 5, 4, 4, {}),
    "cross": Case((2,), 3, 3, 5, 7, 4, 6, {}),
    "causal": Case((2,), 3, 3, 6, 6, 4, 5, {"causal": True}),
    "cached": Case((2,), 3, 3, 4, 7, 5, 6, {"causal": True}),
    "one query": Case((2,), 3, 3, 1, 7, 4, 5, {"causal": True}),
    "top left": Case((2,), 3, 3, 4, 7, 5, 6, {"causal": True, "offset": 0}),
    "more queries": Case((2,), 3, 3, 7, 4, 5, 6, {"causal": True}),
    "grouped": Case((2,), 6, 2, 5, 7, 4, 3, {"causal": True}),
    "one kv head": Case((2,), 4, 1, 5, 6, 3, 7, {}),
    "window": Case((2,), 3, 3, 7, 7, 4, 5, {"window": 3}),
    "scaled": Case((2,), 3, 3, 5, 6, 4, 7, {"scale": 0.3}),
    "no batch": Case((), 3, 3, 5, 6, 4, 7, {"causal": True}),
    "two batch axes": Case((2, 3), 4, 2, 5, 6, 3, 7, {"causal": True}),
}
