"""What every kernel gets: one call of `attend`, with its sugar resolved."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypedDict

from headway.attention import masks
from headway.attention.arrays import Array
from headway.attention.dropout import Seed
from headway.attention.formula import Bias, MaskLike
from headway.attention.masks import Mask, Offset, as_mask, both
from headway.attention.normalizers import Normalizer, softmax

Shape = tuple[int, ...]


class Unsupported(ValueError):  # noqa: N818 - the name says it
    """A kernel cannot run a call; the message says why."""


class Options(TypedDict, total=False):
    """The keywords of `attend`, but for the kernel's name."""

    mask: MaskLike
    bias: Bias
    causal: bool
    window: int | None
    scale: float | None
    softcap: float | None
    normalizer: Normalizer
    dropout: float
    seed: Seed | None
    offset: Offset


@dataclass(eq=False)  # not frozen, which takes as long again to make as all else in `attend`
class Call:
    """The arguments of `attend`; `mask` already holds `causal` and `window`."""

    queries: Array
    keys: Array
    values: Array
    mask: Mask | None = None
    bias: Bias = None
    scale: float | None = None
    softcap: float | None = None
    normalizer: Normalizer = softmax
    dropout: float = 0.0
    seed: Seed | None = None
    offset: Offset = None

    @classmethod
    def of(
        cls,
        queries: Array,
        keys: Array,
        values: Array,
        *,
        mask: MaskLike = None,
        causal: bool = False,
        window: int | None = None,
        **options: Any,
    ) -> Call:
        """The call with its sugar resolved. Raises ValueError for shapes that do not fit."""
        if not _fit(queries.shape, keys.shape, values.shape):
            _complain(tuple(queries.shape), tuple(keys.shape), tuple(values.shape))
        whole = None if mask is None else as_mask(mask)
        if causal:
            whole = both(whole, masks.causal)
        if window is not None:
            whole = both(whole, masks.window(window))
        return cls(queries, keys, values, whole, **options)

    def options(self) -> dict[str, Any]:
        """Everything but queries, keys and values, by the names of `parts.attention`."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("queries", "keys", "values")
        }


def engine(array: Array) -> str:
    """The library that an array is of: "numpy", "torch" or "jax"."""
    for name, kind in (("torch", "Tensor"), ("jax", "Array")):
        library = sys.modules.get(name)
        if library is not None and isinstance(array, getattr(library, kind)):
            return name
    return "numpy"


def _fit(queries: Shape, keys: Shape, values: Shape) -> bool:
    return (
        len(queries) == len(keys) == len(values) >= 3
        and queries[-1] == keys[-1]
        and (keys == values or keys[:-1] == values[:-1])
        and (queries == keys or queries[:-3] == keys[:-3])
        and keys[-3] > 0
        and queries[-3] % keys[-3] == 0
    )


def _complain(queries: Shape, keys: Shape, values: Shape) -> None:
    said = f"queries {queries}, keys {keys}, values {values}"
    wanted = "(..., heads, Tq, d_k), (..., kv_heads, Tk, d_k), (..., kv_heads, Tk, d_v)"
    if not len(queries) == len(keys) == len(values) >= 3:
        raise ValueError(f"attend takes {wanted}: these are {said}")
    if queries[-1] != keys[-1]:
        raise ValueError(f"queries and keys differ in d_k: {said}")
    if keys[:-1] != values[:-1]:
        raise ValueError(f"keys and values differ in more than their last axis: {said}")
    if queries[:-3] != keys[:-3]:
        raise ValueError(f"queries and keys differ in their batch axes: {said}")
    if keys[-3] == 0 or queries[-3] % keys[-3]:
        raise ValueError(f"the heads of keys and values do not divide those of queries: {said}")


class Refuse(Protocol):
    """Why this kernel cannot run the call; None when it can."""

    def __call__(self, call: Call) -> str | None: ...


class Run(Protocol):
    """The context of the call."""

    def __call__(self, call: Call) -> Array: ...


class Kernel(NamedTuple):
    """One way to run the mechanism."""

    refuse: Refuse
    run: Run


def beyond_softmax(call: Call) -> str | None:
    """Why a library's attention, which is a softmax and nothing else, cannot run the call."""
    if call.normalizer is not softmax:
        return "has softmax only"
    if call.softcap is not None:
        return "has no softcap"
    if call.dropout:
        return "has no seeded dropout, so a run could not be repeated"
    return None
