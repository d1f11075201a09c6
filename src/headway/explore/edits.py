"""The changes of a running model that the explorer offers, by means of `headway.edit`."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

from headway.attention.arrays import Array, integers, namespace
from headway.attention.heads import merge
from headway.tracing import edit

Steps = Mapping[str, Callable[[Array], Array]]


@dataclass(frozen=True)
class Edit:
    """One change of one attention. Raises ValueError for invalid values.

    what: a key of EDITS. attention: its name, such as "blocks.0.attention". head: None for all.
    """

    what: str
    attention: str
    head: int | None = None

    def __post_init__(self) -> None:
        if type(self.what) is not str or self.what not in EDITS:
            raise ValueError(f"an edit must be one of {', '.join(EDITS)} (got {self.what!r})")
        if self.head is not None and (type(self.head) is not int or self.head < 0):
            raise ValueError(f"head must be an integer >= 0 (got {self.head!r})")
        if self.head is None and EDITS[self.what].heads == "others":
            raise ValueError(f"{self.what!r} needs the head that stays")
        if self.head is not None and EDITS[self.what].heads == "all":
            raise ValueError(f"{self.what!r} changes all heads: remove `head`")
        if type(self.attention) is not str or set("*?[") & set(self.attention):
            raise ValueError(f"invalid name of an attention: {self.attention!r}")

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Create an edit from an object that the page sent."""
        names = {field.name for field in fields(cls)}
        if not (isinstance(value, dict) and {"what", "attention"} <= value.keys() <= names):
            raise ValueError("an edit must have `what` and `attention`, and may have `head`")
        return cls(**value)

    def opened(self) -> AbstractContextManager[object]:
        """Return a context manager in which the edit applies."""
        changes = EDITS[self.what].steps()
        return edit({f"{self.attention}.{step}": self._of_head(f) for step, f in changes.items()})

    def _of_head(self, change: Callable[[Array], Array]) -> Callable[[Array], Array]:
        if self.head is None:
            return change
        chosen, is_of_others = self.head, EDITS[self.what].heads == "others"

        def changed(value: Array) -> Array:
            heads = value.shape[-3]
            if chosen >= heads:
                raise ValueError(f"head must be below {heads} in {self.attention} (got {chosen})")
            number = integers(heads, value)[:, None, None]
            is_changed = (number != chosen) if is_of_others else (number == chosen)
            return namespace(value).where(is_changed, change(value), value)

        return changed


def apply_all(edits: Iterable[Edit]) -> ExitStack:
    """Return a context in which all edits apply, in the order of EDITS."""
    stack = ExitStack()
    for one in sorted(edits, key=lambda one: list(EDITS).index(one.what)):
        stack.enter_context(one.opened())
    return stack


def _off() -> Steps:
    return {"context": lambda context: context * 0}


def _replaced(before: str, step: str, new: Callable[[Array, Array], Array]) -> Steps:
    """Replace a step by `new(the step before, this step)`."""
    kept: list[Array] = []

    def keep(value: Array) -> Array:
        kept[:] = [value]
        return value

    return {before: keep, step: lambda value: new(kept[0], value)}


def _unscaled() -> Steps:
    return _replaced("scores", "scaled", lambda scores, scaled: scores)


def _unmasked() -> Steps:
    """Undo the mask, but not a bias: only cells of -inf get their score back."""

    def unmasked(scores: Array, masked: Array) -> Array:
        xp = namespace(masked)
        return xp.where(masked == -xp.inf, scores, masked)

    return _replaced("*ca*ed", "masked", unmasked)  # scaled or, if there is a cap, capped


def _unrotated() -> Steps:
    """Use the queries and keys without their rotation."""
    return {**_unrotated_rows("queries"), **_unrotated_rows("keys")}


def _unrotated_rows(role: str) -> Steps:
    """With a cache, the attention has the keys of all tokens, of which only the last are new."""
    rows: list[Array] = []

    def keep(new: Array) -> Array:
        rows.append(new)
        return new

    def unrotated(value: Array) -> Array:
        tokens = value.shape[-2]
        rows[:] = [namespace(value).concat(rows, axis=-2)[..., -tokens:, :]]
        return rows[0]

    return {f"unrotated_{role}": keep, role: unrotated}


def _concatenated() -> Steps:
    """Use the contexts of the heads, next to each other, as the output."""
    return _replaced("context", "output", lambda context, output: merge(context))


def _uniform() -> Steps:
    """Give all keys with a weight the same weight."""
    return {"weights": lambda w: _divided(namespace(w).astype(w > 0, w.dtype))}


def _identity() -> Steps:
    return {"weights": lambda weights: _shares(weights, lambda query, key: key == query)}


def _previous() -> Steps:
    """Let each query attend to the previous token only, the first one to itself."""

    def before(query: Array, key: Array) -> Array:
        return (key == query - 1) | ((query == 0) & (key == 0))

    return {"weights": lambda weights: _shares(weights, before)}


def _shares(weights: Array, chosen: Callable[[Array, Array], Array]) -> Array:
    """Distribute the weight of each row equally over the chosen keys."""
    xp = namespace(weights)
    rows, columns = weights.shape[-2:]
    query = integers(rows, weights)[:, None] + (columns - rows)
    key = integers(columns, weights)
    share = xp.astype(chosen(query, key), weights.dtype)
    return weights * 0 + _divided(share)


def _divided(share: Array) -> Array:
    """Divide each row by its sum; a row of zeros stays."""
    xp = namespace(share)
    total = xp.sum(share, axis=-1, keepdims=True)
    return share / xp.where(total == 0, 1.0, total)


class Kind(NamedTuple):
    """A kind of edit.

    shown: the steps that show it. label: for the page. steps: the changes. heads: which heads it
    changes: one or all ("any"), always "all", or all "others". without: the text of `ladder/why.md`
    to which it is the opposite.
    """

    shown: tuple[str, ...]
    label: str
    steps: Callable[[], Steps]
    heads: Literal["any", "all", "others"] = "any"
    without: str | None = None


# The page gets names, steps and labels from here; `no mask` applies after the edits of scores.
EDITS: Mapping[str, Kind] = MappingProxyType(
    {
        "no rotary": Kind(
            ("queries", "keys"), "queries and keys are not rotated", _unrotated, "all", "rotary"
        ),
        "off": Kind(("context",), "head switched off (its context is 0)", _off, without="context"),
        "alone": Kind(("context",), "all other heads are switched off", _off, "others", "heads"),
        "no scale": Kind(("scaled",), "scores are not scaled", _unscaled, without="scaled"),
        "no mask": Kind(
            ("masked",),
            "the mask is removed, so tokens attend to later tokens",
            _unmasked,
            without="masked",
        ),
        "uniform": Kind(("weights",), "uniform weights", _uniform),
        "identity": Kind(("weights",), "each token attends to itself only", _identity),
        "previous": Kind(("weights",), "each token attends to the previous token only", _previous),
        "no output": Kind(
            ("output",),
            "the output matrix is left out: the contexts of the heads are put side by side",
            _concatenated,
            "all",
            "output",
        ),
    }
)
