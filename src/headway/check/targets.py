"""From `package.module:Name` or `file.py:Name` to the attention that it names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from ast import literal_eval
from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any


def load(target: str, settings: Iterable[str] = ()) -> Any:
    """The function, the module, or the class made with `settings` ("name=value").

    Runs the code that it names. Raises ValueError, in one line, for whatever goes wrong there.
    """
    where, _, name = target.rpartition(":")
    given = dict(_setting(each) for each in settings)
    module = _imported(where)
    if not hasattr(module, name):
        near = get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where} has no {name!r}{hint}")
    found = getattr(module, name)
    if isinstance(found, type):
        if "torch" in sys.modules:  # so that its first values, and the report, are the same again
            sys.modules["torch"].manual_seed(0)
        try:
            return found(**given)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"{name}({', '.join(settings)}) raised {type(error).__name__}: {error}; "
                "give its arguments as --set name=value"
            ) from error
    return partial(found, **given) if given else found


def _imported(where: str) -> ModuleType:
    path = Path(where)
    if where.endswith(".py") and not path.is_file():
        raise ValueError(f"there is no file {where}")
    # As `python file.py` and `python -m` do: its own folder, or the one that one is in.
    sys.path.insert(0, str(path.resolve().parent) if where.endswith(".py") else "")
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        # A name of its own: `tokenize.py` must not become Python's module of that name.
        spec = importlib.util.spec_from_file_location(f"checked {path.stem}", path)
        if spec is None or spec.loader is None:  # never of a file that ends with .py
            raise ImportError(where)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # so that its source is found
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"importing {where} raised {type(error).__name__}: {error}") from error
    return module


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--set takes name=value, such as n_heads=4: {text!r} is not")
    try:
        return name, literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word
