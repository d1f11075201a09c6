"""The ways to call an answer that are accepted, and what a call must not do."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from headway.learn.answer import Answer
from headway.learn.graders.compare import Array, Inputs, View
from headway.learn.grades import Wrong

COPIES = (2, 3)  # the lengths of leading axes


@dataclass
class Watched:
    """An answer that notes which of its arguments it changes in place."""

    answer: Answer
    changed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, answer: Answer, *, as_it_is: bool = False) -> Watched:
        """Watch a function, or the method of a class.

        JAX cannot change its arrays; there it is compiled, which is faster. as_it_is: do nothing
        with a class, or with JAX.
        """
        watched = cls(answer)
        entry = answer.entry
        if as_it_is and (answer.is_class or answer.library.name == "jax"):
            return watched
        if answer.is_class:
            watched.answer = replace(answer, entry=_method(entry))
            return watched
        if answer.library.name == "jax":
            watched.answer = replace(answer, entry=_compiled(entry))
            return watched

        @functools.wraps(entry)
        def call(*inputs: Any, **options: Any) -> Any:
            library = answer.library
            given = {**dict(zip(answer.names(), inputs, strict=False)), **options}
            arrays = {name: value for name, value in given.items() if library.is_array(value)}
            before = {name: library.numpy(array) for name, array in arrays.items()}
            result = entry(*inputs, **options)
            for name, array in arrays.items():
                if not np.array_equal(library.numpy(array), before[name], equal_nan=True):
                    watched.changed.add(name)
            return result

        watched.answer = replace(answer, entry=call)
        return watched

    def check(self) -> None:
        """Raise `Wrong` if a call changed an argument."""
        name = next((name for name in self.answer.names() if name in self.changed), None)
        if name is not None:
            raise Wrong(
                "in-place",
                f"The result is right, but the function changes its argument {name}, which the "
                "caller may still need. Compute a new array instead of changing this one with "
                "-=, /=, an assignment to its cells, or a method such as sub_.",
                look=rf"{name}(\[.*\])? ?[-+*/]?=|_\(|out=|\] ?=",
            )


def check_is_own(answer: Answer, name: str) -> None:
    """Raise `Wrong` if the answer calls a function or class of a library with this name."""
    tree = ast.parse(answer.source)
    nodes = [*ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    imported = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name.lower().endswith(name)
    } - own
    for called in [node.func for node in nodes if isinstance(node, ast.Call)]:
        text = ast.unparse(called)
        is_method = isinstance(called, ast.Attribute) and called.attr.lower().endswith(name)
        if (is_method and not text.startswith("self.")) or text in imported:
            raise Wrong(
                "ready-made",
                f"The result is right, but {text} is a ready-made {name}. Write the formula "
                "yourself: that is what this exercise is about.",
                look=re.escape(text) + r"\(",
            )


def _method(cls: type) -> Any:
    """Return a function that calls a new instance of a class without weights.

    Arguments of the class that have no default are widths, or the root of one.
    """
    method = getattr(cls, "forward", cls.__call__)
    needed = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty and parameter.kind < parameter.VAR_POSITIONAL
    ]

    def call(*inputs: Any, **options: Any) -> Any:
        width = [*inputs, *options.values()][0].shape[-1]
        is_root = [re.match("temp|scale", name) for name in needed]
        instance = cls(*(width**0.5 if root else width for root in is_root))
        return method(instance, *inputs, **options)

    names = inspect.signature(method)
    parameters = [*names.parameters.values()][1:]  # without self
    call.__signature__ = names.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def _compiled(entry: Any) -> Any:
    """Compile a function of JAX, if it can be compiled."""
    import jax

    @functools.wraps(entry)
    def call(*inputs: Any, **options: Any) -> Any:
        try:
            # Numbers, such as the number of heads, are known when it is compiled.
            numbers = [i for i, value in enumerate(inputs) if isinstance(value, int | float)]
            names = [name for name, value in options.items() if isinstance(value, int | float)]
            compiled = jax.jit(entry, static_argnums=numbers, static_argnames=names)
            return compiled(*inputs, **options)
        except Exception:  # any other error occurs again in this call
            return entry(*inputs, **options)

    return call


def views(answer: Answer, axes: Sequence[int] = (0, 1)) -> Iterator[View]:
    """Return calls with the inputs as they are, and with copies of them along leading axes.

    The arguments are passed by their names, if these are known, or in their order. axes: the
    numbers of leading axes.
    """

    def call(inputs: Inputs, shape: tuple[int, ...], *, leading: int, by_name: bool) -> Array:
        def run(*arrays: Array) -> Array:
            if by_name:
                given = dict(zip(inputs, arrays, strict=True))
                return answer.call_named(given, COPIES[:leading] + shape)
            return answer.call(*arrays, shape=COPIES[:leading] + shape)

        return of_one_copy(run, [*inputs.values()], leading)

    for leading in axes:
        for by_name in (True, False):
            yield functools.partial(call, leading=leading, by_name=by_name)


def copies(array: Array, leading: int) -> Array:
    """Return copies of an array along a number of leading axes."""
    return np.broadcast_to(array, COPIES[:leading] + array.shape)


def of_one_copy(run: Callable[..., Array], arrays: Sequence[Array], leading: int) -> Array:
    """Call an answer with copies of arrays along leading axes; return the result of one copy.

    Raises `Wrong` if the result has no such axes, or if one text of a batch changes another.
    """
    given = [copies(array, leading) for array in arrays]
    result = run(*given)
    if not leading:
        return result
    if result.shape[:leading] != COPIES[:leading]:
        raise Wrong("shape", "The result of a batch must begin with the axes of the batch.")
    other = [array.copy() for array in given]
    for array in other:
        array[(0,) * leading] *= -2
    one = one_of(result, leading)
    if one is not result and not np.allclose(run(*other)[(-1,) * leading], one, 1e-3, 1e-5, True):
        raise Wrong("batch", "The result of one text of a batch depends on another text.")
    return one


def one_of(result: Array, leading: int) -> Array:
    """Return the result of one of the copies; all of it if the results differ."""
    one = result[(0,) * leading] if result.shape[:leading] == COPIES[:leading] else result
    same = np.allclose(result, one, rtol=1e-3, atol=1e-5, equal_nan=True)
    return np.asarray(one if same else result)
