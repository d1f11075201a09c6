"""What one may change in a running model, and see the consequences of, by `headway.edit`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Self

from headway.attention.arrays import Array, integers, namespace
from headway.tracing import edit

Steps = Mapping[str, Callable[[Array], Array]]


@dataclass(frozen=True)
class Edit:
    """One change in one attention.

    what: a key of EDITS. attention: the name of the attention, such as "blocks.0.attention".
    head: which head only; None for all.

    Raises ValueError for what is no edit.
    """

    what: str
    attention: str
    head: int | None = None

    def __post_init__(self) -> None:
        if type(self.what) is not str or self.what not in EDITS:
            raise ValueError(f"an edit is one of {', '.join(EDITS)}: {self.what!r} is not")
        if self.head is not None and (type(self.head) is not int or self.head < 0):
            raise ValueError(f"a head is a number from 0: {self.head!r} is not")
        if type(self.attention) is not str or set("*?[") & set(self.attention):
            raise ValueError(f"{self.attention!r} names no attention")

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """From an object as the page sends it."""
        names = {field.name for field in fields(cls)}
        if not (isinstance(found, dict) and {"what", "attention"} <= found.keys() <= names):
            raise ValueError("an edit has `what`, `attention` and perhaps `head`")
        return cls(**found)

    def opened(self) -> AbstractContextManager[None]:
        """Within, the edit holds."""
        changes = EDITS[self.what]()
        return edit({f"{self.attention}.{step}": self._of_head(f) for step, f in changes.items()})

    def _of_head(self, change: Callable[[Array], Array]) -> Callable[[Array], Array]:
        if self.head is None:
            return change
        chosen = self.head

        def changed(value: Array) -> Array:
            heads = value.shape[-3]
            if chosen >= heads:
                raise ValueError(f"{self.attention} has {heads} heads, counted from 0: no {chosen}")
            number = integers(heads, value)[:, None, None]
            return namespace(value).where(number == chosen, change(value), value)

        return changed


def all_opened(edits: Iterable[Edit]) -> ExitStack:
    """Within, all these edits hold; `no mask` sees what the others made of the scores."""
    stack = ExitStack()
    for each in sorted(edits, key=lambda each: list(EDITS).index(each.what)):
        stack.enter_context(each.opened())
    return stack


def _off() -> Steps:
    """The head says nothing: its context is 0."""
    return {"context": lambda context: context * 0}


def _no_scale() -> Steps:
    """The scores go into the softmax as they are."""
    return _skipped("scores", "scaled")


def _no_mask() -> Steps:
    """Every query sees every key, later ones too."""
    return _skipped("scaled", "masked")


def _skipped(before: str, step: str) -> Steps:
    """A step gives back what the step before it made."""
    seen: list[Array] = []

    def keep(scores: Array) -> Array:
        seen[:] = [scores]
        return scores

    return {before: keep, step: lambda value: seen[0]}


def _uniform() -> Steps:
    """All keys that weigh anything weigh the same."""

    def even(weights: Array) -> Array:
        some = namespace(weights).astype(weights > 0, weights.dtype)
        return _divided(some)

    return {"weights": even}


def _identity() -> Steps:
    """Each query sees itself alone."""
    return {"weights": lambda weights: _shares(weights, lambda query, key: key == query)}


def _previous() -> Steps:
    """Each query sees the token before it alone; the first one sees itself."""

    def before(query: Array, key: Array) -> Array:
        return (key == query - 1) | ((query == 0) & (key == 0))

    return {"weights": lambda weights: _shares(weights, before)}


def _shares(weights: Array, chosen: Callable[[Array, Array], Array]) -> Array:
    """Each row shared evenly among the keys chosen."""
    xp = namespace(weights)
    rows, columns = weights.shape[-2:]
    query = integers(rows, weights)[:, None] + (columns - rows)
    key = integers(columns, weights)
    share = xp.astype(chosen(query, key), weights.dtype)
    return weights * 0 + _divided(share)


def _divided(share: Array) -> Array:
    """Each row by its sum; a row of zeros stays."""
    xp = namespace(share)
    total = xp.sum(share, axis=-1, keepdims=True)
    return share / xp.where(total == 0, 1.0, total)


EDITS: Mapping[str, Callable[[], Steps]] = MappingProxyType(
    {
        "off": _off,
        "no scale": _no_scale,
        "no mask": _no_mask,
        "uniform": _uniform,
        "identity": _identity,
        "previous": _previous,
    }
)
