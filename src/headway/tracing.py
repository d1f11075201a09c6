"""Every intermediate has a name: `tap` says it, `trace` sees it, `edit` changes it.

The mechanisms know of this module only lines such as `weights = tap("weights", weights)`, which
is the identity unless somebody, somewhere, has a trace or an edit open:

    with headway.trace() as steps:
        context = headway.attend(queries, keys, values, causal=True)
    steps["weights"]                     # (batch, heads, queries, keys)

    with headway.edit({"weights": uniform}):
        context = headway.attend(queries, keys, values, causal=True)
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Self, final

from array_api_compat import array_namespace

# The names of one attention, in order. INSIDE exist only in the plain mechanism: a fast kernel
# never makes them. BY_QUERY have the query positions on their last axis but one.
STEPS = (
    *("queries", "keys", "values"),
    *("scores", "scaled", "capped", "masked", "weights", "dropped"),
    *("context", "output"),
)
INSIDE = STEPS[3:9]
BY_QUERY = frozenset(("queries", *INSIDE, "context"))
WHOLE = slice(None)


@dataclass(frozen=True)
class _Context:
    """What holds in this thread: the prefix of names, and who listens, outermost first."""

    prefix: str = ""
    listeners: tuple[_Listener, ...] = ()
    rows_taken: bool = False
    silent: bool = False


_context: ContextVar[_Context] = ContextVar("headway.tracing", default=_Context())

# How many traces and edits are open in all threads. Compiled code may read a module's integer
# (torch.compile guards on it) but not a ContextVar, so it is read first, and the ContextVar,
# which keeps threads apart, only when it is not zero.
_open = 0
_open_lock = threading.Lock()


def tap(name: str, value: Any) -> Any:
    """`value`, seen by every open trace and changed by every open edit whose pattern fits."""
    return _tapped(name, value) if _open else value


def note(name: str, facts: Any) -> None:
    """Pass facts about the steps here to every open trace, such as their Spec: `Trace.notes`."""
    if _open:
        context = _context.get()
        for listener in () if context.silent else context.listeners:
            listener.noted(context.prefix + name, facts)


def scope(name: str) -> AbstractContextManager[None]:
    """Put `name` and a dot before the names tapped within."""
    return _Entered(prefix=name + ".") if _open else nullcontext()


def listening() -> bool:
    """Whether anybody, in any thread, has a trace or an edit open."""
    return _open > 0


def wanted(names: Iterable[str]) -> slice | None:
    """The rows of queries for which somebody asks one of `names` here: None when nobody does.

    An edit, or two traces that want different rows, want them all.
    """
    if not _open:
        return None
    context = _context.get()
    full = [context.prefix + name for name in names]
    asking = [[each.rows for name in full if each.fits(name)] for each in context.listeners]
    rows = [fitting[0] for fitting in asking if fitting]
    if not rows:
        return None
    return rows[0] if all(one == rows[0] for one in rows) else WHOLE


def rows_taken() -> AbstractContextManager[None]:
    """Within, only the steps INSIDE are tapped, and they have only the rows that traces want."""
    return _Entered(rows_taken=True)


def silent() -> AbstractContextManager[None]:
    """Within, nothing is tapped: parts of a step that is not one whole."""
    return _Entered(silent=True) if _open else nullcontext()


def trace(only: str | Iterable[str] | None = None, *, rows: slice | None = None) -> Trace:
    """Record what is tapped within: a mapping from names to values.

    only: a pattern such as `"blocks.*.attention.weights"`, or several (default: everything).
    rows: a slice of query positions. Of queries, scores ... context only these rows are kept, and
        a layer on a fast kernel runs the mechanism on these rows alone.

    Values are the engine's own arrays, not copied and not detached from the gradient. While a
    trace is open PyTorch and JAX run eagerly, compiled functions too. A name met several times
    (decode steps) gets a leading step axis, or, where the shapes differ from step to step, is a
    list. Raises LookupError at the end when a pattern matched nothing.
    """
    patterns = ("*",) if only is None else (only,) if isinstance(only, str) else tuple(only)
    if rows is not None and (not isinstance(rows, slice) or rows.step not in (None, 1)):
        raise ValueError(f"rows is a slice without a step, such as slice(0, 32), not {rows!r}")
    return Trace(patterns, WHOLE if rows is None else rows)


def edit(changes: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Change what is tapped within: `{pattern: function of the value, or an array}`.

    An array is broadcast to the value's shape; a function must keep the shape. Edits apply before
    recording, the outer before the inner. Raises ValueError on another shape, and LookupError at
    the end when a pattern matched nothing.
    """
    return _Edit(changes)


@dataclass(frozen=True)
class _Entered(AbstractContextManager[None]):
    """A context with something added to it, until exit."""

    prefix: str = ""
    rows_taken: bool = False
    silent: bool = False
    _tokens: list[Token[_Context]] = field(default_factory=list)

    def __enter__(self) -> None:
        now = _context.get()
        inner = replace(
            now,
            prefix=now.prefix + self.prefix,
            rows_taken=now.rows_taken or self.rows_taken,
            silent=now.silent or self.silent,
        )
        self._tokens.append(_context.set(inner))

    def __exit__(self, *error: object) -> None:
        _context.reset(self._tokens.pop())


def _tapped(name: str, value: Any) -> Any:
    context = _context.get()
    full = context.prefix + name
    if context.silent or (context.rows_taken and name not in INSIDE):
        return value
    heard = [listener for listener in context.listeners if listener.fits(full)]
    if heard:
        _refuse_tracer(full, value)
    for listener in heard:
        value = listener.change(full, value)
    for listener in heard:
        cut = name in BY_QUERY and not context.rows_taken and listener.rows != WHOLE
        listener.record(full, value[..., listener.rows, :] if cut else value)
    return value


def _refuse_tracer(name: str, value: Any) -> None:
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.core.Tracer):
        raise RuntimeError(
            f"{name!r} is a JAX tracer, not a value: open headway.trace or headway.edit around a "
            "call that jax.grad, jax.vmap or jax.checkpoint does not transform"
        )


def _eagerly() -> ExitStack:
    """Both engines run eagerly within, functions already compiled too, if they are loaded.

    A function compiled before would record nothing, and one compiled within would leak tracers.
    """
    stack = ExitStack()
    if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
        stack.enter_context(sys.modules["torch"].compiler.set_stance("force_eager"))
    if "jax" in sys.modules:
        stack.enter_context(sys.modules["jax"].disable_jit())
    return stack


class _Listener(ABC):
    """Somebody who sees (a trace) or changes (an edit) the values whose names fit a pattern."""

    def __init__(self, patterns: Iterable[str], rows: slice) -> None:
        self.patterns = tuple(patterns)
        self.rows = rows
        self._met: dict[str, bool] = {}  # every name that came by, and whether it fitted
        self._entered: list[tuple[Token[_Context], ExitStack]] = []

    def fits(self, name: str) -> bool:
        if name not in self._met:
            self._met[name] = any(fnmatchcase(name, pattern) for pattern in self.patterns)
        return self._met[name]

    @abstractmethod
    def change(self, name: str, value: Any) -> Any: ...

    @abstractmethod
    def record(self, name: str, value: Any) -> None: ...

    @abstractmethod
    def noted(self, name: str, facts: Any) -> None: ...

    def _enter(self) -> None:
        global _open
        eager = _eagerly()
        now = _context.get()
        token = _context.set(replace(now, listeners=(*now.listeners, self)))
        self._entered.append((token, eager))
        with _open_lock:
            _open += 1

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        global _open
        with _open_lock:
            _open -= 1
        token, eager = self._entered.pop()
        _context.reset(token)
        eager.close()
        if kind is None:
            self._complain_of_unmatched()

    def _complain_of_unmatched(self) -> None:
        for pattern in self.patterns:
            if pattern != "*" and not any(fnmatchcase(name, pattern) for name in self._met):
                raise LookupError(f"no step is called {pattern!r}{_nearest(pattern, self._met)}")


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f"; the nearest is {near[0]!r}" if near else "; nothing was tapped at all"


@final
class Trace(_Listener, Mapping[str, Any]):
    """The steps that were recorded, by name, in the order in which they ran.

    notes: facts about them, such as `notes["blocks.0.attention.spec"]`; the last ones where a name
    was met again.
    """

    def __init__(self, patterns: Iterable[str], rows: slice) -> None:
        super().__init__(patterns, rows)
        self.notes: dict[str, Any] = {}
        self._values: dict[str, list[Any]] = {}

    def __enter__(self) -> Self:
        self._enter()
        return self

    def change(self, name: str, value: Any) -> Any:
        return value

    def record(self, name: str, value: Any) -> None:
        self._values.setdefault(name, []).append(value)

    def noted(self, name: str, facts: Any) -> None:
        self.notes[name] = facts

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(f"no step {name!r} was recorded{_nearest(name, self._values)}")
        values = self._values[name]
        if len(values) == 1:
            return values[0]
        if len({value.shape for value in values}) > 1:
            return list(values)
        return array_namespace(*values).stack(values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Trace({', '.join(self._values)})"


@final
class _Edit(_Listener, AbstractContextManager[None]):
    def __init__(self, changes: Mapping[str, Any]) -> None:
        super().__init__(changes, WHOLE)
        self._changes = dict(changes)

    def __enter__(self) -> None:
        self._enter()

    def change(self, name: str, value: Any) -> Any:
        for pattern, new in self._changes.items():
            if fnmatchcase(name, pattern):
                value = _changed(name, value, new)
        return value

    def record(self, name: str, value: Any) -> None:
        pass

    def noted(self, name: str, facts: Any) -> None:
        pass


def _changed(name: str, value: Any, new: Any) -> Any:
    if isinstance(new, Callable):  # type: ignore[arg-type]
        edited = new(value)
    else:
        xp = array_namespace(value)
        try:
            edited = xp.broadcast_to(xp.asarray(new, dtype=value.dtype), value.shape)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"the edit of {name!r} does not fit {tuple(value.shape)}") from error
    if tuple(edited.shape) != tuple(value.shape):
        raise ValueError(
            f"the edit of {name!r} made {tuple(edited.shape)} out of {tuple(value.shape)}: "
            "an edit keeps the shape"
        )
    return edited
