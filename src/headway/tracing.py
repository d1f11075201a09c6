"""Tracing: `tap` names an intermediate value, `trace` records it, `edit` changes it.

Code that computes attention contains lines such as `weights = tap("weights", weights)`. `tap`
returns its value unchanged unless a trace or an edit is open:

    with headway.trace() as steps:
        context = headway.attend(queries, keys, values, causal=True)
    steps["weights"]                     # (batch, heads, queries, keys)

    with headway.edit({"weights": uniform}):
        context = headway.attend(queries, keys, values, causal=True)
"""

from __future__ import annotations

import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self, final

from array_api_compat import array_namespace

from headway.nearest import suggestion

# The names of the steps of one attention, in order. The steps BEFORE are queries and keys before
# QK-norm, where there is one, and before rotary positions. Only the formula computes the steps
# INSIDE; fast kernels do not. The steps BY_QUERY have the query positions on their second-to-last
# axis, the steps BY_HEAD the heads on their third-to-last axis.
BEFORE = ("unnormalized_queries", "unnormalized_keys", "unrotated_queries", "unrotated_keys")
INSIDE = ("scores", "scaled", "capped", "masked", "weights", "dropped")
STEPS = (*BEFORE, "queries", "keys", "values", *INSIDE, "context", "output")
BY_QUERY = frozenset(("unnormalized_queries", "unrotated_queries", "queries", *INSIDE, "context"))
BY_HEAD = BY_QUERY | {"unnormalized_keys", "unrotated_keys", "keys", "values"}


class Part(NamedTuple):
    """The part of a matrix of weights that a trace requests: rows (queries) and heads."""

    rows: slice = slice(None)
    heads: slice = slice(None)

    def of(self, name: str, value: Any, group: int) -> Any:
        """This part of a step; group: the number of query heads per head of keys and values."""
        if name in BY_HEAD and self.heads != slice(None) and value.ndim > 2:
            first, end, _ = self.heads.indices(value.shape[-3] * group)
            value = value[..., first // group : -(-end // group), :, :]
        return value[..., self.rows, :] if name in BY_QUERY and self.rows != slice(None) else value


EVERYTHING = Part()


@dataclass(frozen=True)
class _Context:
    """The state of this thread: the prefix of names and the open listeners, outermost first."""

    prefix: str = ""
    listeners: tuple[_Listener, ...] = ()
    part_taken: bool = False
    silent: bool = False


_context: ContextVar[_Context] = ContextVar("headway.tracing", default=_Context())

# The number of traces and edits that are open in all threads. torch.compile supports reading a
# module's integer but not a ContextVar, so the ContextVar (one per thread) is read only if needed.
_open = 0
_open_lock = threading.Lock()
_observers: list[Callable[[bool], object]] = []


def tap(name: str, value: Any, group: int = 1) -> Any:
    """Return `value`, after open edits changed it and open traces recorded it under `name`.

    group: for keys and values, the number of query heads that share one of their heads.
    """
    return _tapped(name, value, group) if _open else value


def note(name: str, facts: Any) -> None:
    """Store facts about the steps, such as their Spec, in the `notes` of every open trace."""
    if _open:
        context = _context.get()
        for listener in () if context.silent else context.listeners:
            listener.add_note(context.prefix + name, facts)


def scope(name: str) -> AbstractContextManager[None]:
    """Add the prefix `name` and a dot to the names that are tapped in this context."""
    return _within(prefix=name + ".") if _open else nullcontext()


def listening() -> bool:
    """Whether a trace or an edit is open in any thread."""
    return _open > 0


def observe(observer: Callable[[bool], object]) -> None:
    """Call `observer(True)` when the first trace or edit of any thread opens (now, if one is open),
    and `observer(False)` when the last one closes."""
    with _open_lock:
        _observers.append(observer)
        if _open:
            observer(True)


def stop_observing(observer: Callable[[bool], object]) -> None:
    """End `observe`; call `observer(False)` if a trace or an edit is open."""
    with _open_lock:
        _observers.remove(observer)
        if _open:
            observer(False)


def _tell_observers(has_changed: bool) -> None:
    for observer in _observers if has_changed else ():
        observer(listening())


def wanted(names: Iterable[str]) -> Part | None:
    """The part that open traces and edits request of the steps `names`; None if none do.

    An edit requests everything. If two traces request different parts, the result is everything.
    """
    if not _open:
        return None
    context = _context.get()
    names = [context.prefix + name for name in names]
    # A set, not any(...), which would stop early: `fits` records the names for error messages.
    parts = [x.part for x in context.listeners if True in {x.fits(name) for name in names}]
    if not parts:
        return None
    return parts[0] if all(other == parts[0] for other in parts) else EVERYTHING


def part_taken() -> AbstractContextManager[None]:
    """In this context, tap only the steps INSIDE; their values have only the requested part."""
    return _within(part_taken=True)


def silent() -> AbstractContextManager[None]:
    """Tap nothing in this context, for example while a kernel computes a part of a step."""
    return _within(silent=True) if _open else nullcontext()


def trace(
    only: str | Iterable[str] | None = None,
    *,
    rows: slice | None = None,
    heads: slice | None = None,
) -> Trace:
    """Record the values that are tapped in this context: a mapping from names to values.

    only: a pattern such as `"blocks.*.attention.weights"`, or several (default: everything).
    rows: a slice of query positions. The steps with a query axis (queries, scores ... context)
        are recorded for these rows only. A fast kernel still computes the output; in addition,
        the formula computes the steps inside of the attention for these rows.
    heads: a slice of heads, in the same way, for the steps with a heads axis (queries ... context).
        Of the keys and values, the heads that these query heads read are recorded.

    Values are arrays of the engine; they are neither copied nor detached from the autograd graph.
    While a trace is open, PyTorch and JAX run eagerly, including functions that are already
    compiled. If a name is tapped several times, as in decoding, its values are stacked along a new
    first axis, or are a list if their shapes differ. Raises LookupError on exit if a pattern
    matched no name; a trace of everything that recorded nothing warns.
    """
    patterns = ("*",) if only is None else (only,) if isinstance(only, str) else tuple(only)
    for what, part in (("rows", rows), ("heads", heads)):
        if part is not None and (not isinstance(part, slice) or part.step not in (None, 1)):
            raise ValueError(f"{what} must be a slice without a step: slice(0, 32) (got {part!r})")
    return Trace(patterns, Part(rows or slice(None), heads or slice(None)))


def edit(changes: Mapping[str, Any]) -> AbstractContextManager[object]:
    """Change the values that are tapped in this context: `{pattern: function or array}`.

    A function gets the value and must keep its shape; an array is broadcast to the shape of the
    value. Edits apply before traces record, outer edits before inner ones. Raises ValueError if
    the shape changes, and LookupError on exit if a pattern matched no name.
    """
    return _Edit(changes)


@contextmanager
def _within(prefix: str = "", **changes: Any) -> Iterator[None]:
    """Change the state of this thread until exit; the prefix is appended to the outer one."""
    outer = _context.get()
    token = _context.set(replace(outer, prefix=outer.prefix + prefix, **changes))
    try:
        yield
    finally:
        _context.reset(token)


def _tapped(name: str, value: Any, group: int) -> Any:
    context = _context.get()
    full_name = context.prefix + name
    if context.silent or (context.part_taken and name not in INSIDE):
        return value
    listeners = [listener for listener in context.listeners if listener.fits(full_name)]
    if listeners:
        _refuse_tracer(full_name, value)
    for listener in listeners:
        value = listener.change(full_name, value)
    for listener in listeners:
        part = EVERYTHING if context.part_taken else listener.part
        listener.record(full_name, part.of(name, value, group))
    return value


def _refuse_tracer(name: str, value: Any) -> None:
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.core.Tracer):
        raise RuntimeError(
            f"{name!r} is a JAX tracer without a value; use headway.trace and headway.edit only "
            "around calls that jax.grad, jax.vmap and jax.checkpoint do not transform"
        )


def _eagerly() -> ExitStack:
    """Make the loaded engines run eagerly, including compiled functions.

    A function that was compiled before the trace would record nothing. Compiling a function during
    the trace would store tracers, which have no values.
    """
    stack = ExitStack()
    if "torch._dynamo" in sys.modules:  # otherwise no function is compiled
        stack.enter_context(sys.modules["torch"].compiler.set_stance("force_eager"))
    if "jax" in sys.modules:
        stack.enter_context(sys.modules["jax"].disable_jit())
    return stack


class _Listener(ABC):
    """A trace or an edit: it records or changes the values whose names match its patterns."""

    def __init__(self, patterns: Iterable[str], part: Part) -> None:
        self.patterns = tuple(patterns)
        self.part = part
        self._is_match: dict[str, bool] = {}  # for every name tapped so far, whether it matched
        self._entered: list[tuple[Token[_Context], ExitStack]] = []

    def fits(self, name: str) -> bool:
        if name not in self._is_match:
            self._is_match[name] = any(fnmatchcase(name, pattern) for pattern in self.patterns)
        return self._is_match[name]

    @abstractmethod
    def change(self, name: str, value: Any) -> Any: ...

    @abstractmethod
    def record(self, name: str, value: Any) -> None: ...

    @abstractmethod
    def add_note(self, name: str, facts: Any) -> None: ...

    def __enter__(self) -> Self:
        global _open
        eager = _eagerly()
        outer = _context.get()
        token = _context.set(replace(outer, listeners=(*outer.listeners, self)))
        self._entered.append((token, eager))
        with _open_lock:
            _open += 1
            _tell_observers(_open == 1)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        global _open
        with _open_lock:
            _open -= 1
            _tell_observers(_open == 0)
        token, eager = self._entered.pop()
        _context.reset(token)
        eager.close()
        if kind is None:
            self._check_patterns()

    def _check_patterns(self) -> None:
        names = self._is_match
        if not names and set(self.patterns) <= {"*"}:
            warnings.warn(f"nothing was recorded or edited: {_NOTHING}", stacklevel=3)
        for pattern in self.patterns:
            if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
                raise LookupError(f"no step matches {pattern!r}; {_nearest(pattern, names)}")


def _nearest(name: str, names: Collection[str]) -> str:
    return suggestion(name, names) if names else _NOTHING


_NOTHING = (
    "no step was tapped; call a model of Headway or headway.attend inside, or open "
    "headway.watch(model) for a model of transformers"
)


@final
class Trace(_Listener, Mapping[str, Any]):
    """The recorded steps by name, in the order in which they ran.

    notes: facts about the steps by name, such as `notes["blocks.0.attention.spec"]`. If a name is
    noted several times, the last facts are kept.
    """

    def __init__(self, patterns: Iterable[str], part: Part) -> None:
        super().__init__(patterns, part)
        self.notes: dict[str, Any] = {}
        self._values: dict[str, list[Any]] = {}

    def change(self, name: str, value: Any) -> Any:
        return value

    def record(self, name: str, value: Any) -> None:
        self._values.setdefault(name, []).append(value)

    def add_note(self, name: str, facts: Any) -> None:
        self.notes[name] = facts

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(f"no step {name!r} was recorded; {_nearest(name, self._values)}")
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
class _Edit(_Listener):
    def __init__(self, changes: Mapping[str, Any]) -> None:
        super().__init__(changes, EVERYTHING)
        self._changes = dict(changes)

    def change(self, name: str, value: Any) -> Any:
        for pattern, new in self._changes.items():
            if fnmatchcase(name, pattern):
                value = _changed(name, value, new)
        return value

    def record(self, name: str, value: Any) -> None:
        pass

    def add_note(self, name: str, facts: Any) -> None:
        pass


def _changed(name: str, value: Any, new: Any) -> Any:
    if isinstance(new, Callable):  # type: ignore[arg-type]
        edited = new(value)
    else:
        xp = array_namespace(value)
        try:
            edited = xp.broadcast_to(xp.asarray(new, dtype=value.dtype), value.shape)
        except (ValueError, RuntimeError) as error:
            shape = tuple(value.shape)
            given = tuple(getattr(new, "shape", ())) or type(new).__name__
            raise ValueError(
                f"the edit of {name!r} does not broadcast to {shape} (got {given})"
            ) from error
    if tuple(edited.shape) != tuple(value.shape):
        raise ValueError(
            f"the edit of {name!r} must keep the shape {tuple(value.shape)} "
            f"(got {tuple(edited.shape)})"
        )
    return edited
