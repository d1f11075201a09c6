"""The name and the source lines of an attention."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from headway.check.modules import is_module

Statement = tuple[str, int, str]  # file, line, code


def name_of(attention: Any) -> str:
    """Return the name of a function or of a module's class."""
    attention = _function(attention)
    return getattr(attention, "__qualname__", None) or type(attention).__qualname__


def statements(attention: Any) -> list[Statement]:
    """Return the statements of an attention; [] if its source is not available."""
    found = []
    for part in _parts(attention):
        try:
            text, first = inspect.getsourcelines(part)
            file = Path(inspect.getsourcefile(part) or "?").name
            tree = ast.parse(textwrap.dedent("".join(text)))
        except (OSError, TypeError, SyntaxError):  # built in, interactive, or a lambda
            continue
        for node in ast.walk(tree):
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            kinds = (ast.Assign, ast.AugAssign, ast.Return, ast.Expr)
            if isinstance(node, kinds) and not is_docstring:
                found.append((file, max(first, 1) + node.lineno - 1, ast.unparse(node)))
    return sorted(found)


def matching(pattern: str, found: list[Statement], most: int = 3) -> tuple[str, ...]:
    """Return the first statements that match, as `file:line: code`."""
    lines = (
        f"{file}:{line}: {code[:100]}" for file, line, code in found if re.search(pattern, code)
    )
    return tuple(lines)[:most]


def _function(attention: Any) -> Any:
    """Return the function of a `partial`; anything else as it is."""
    while isinstance(attention, partial):
        attention = attention.func
    return attention


def _parts(attention: Any) -> Iterator[Any]:
    """Yield the function, or the classes of a module and its submodules outside PyTorch."""
    attention = _function(attention)
    if not is_module(attention):
        yield attention if inspect.isroutine(attention) else type(attention)
        return
    classes = dict.fromkeys(type(module) for module in attention.modules())
    yield from (cls for cls in classes if not cls.__module__.startswith("torch."))
