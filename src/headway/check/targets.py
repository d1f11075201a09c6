"""Import the attention that is named as `package.module:Name` or `file.py:Name`."""

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

from headway.check.errors import user_frames


def load(target: str, settings: Iterable[str] = ()) -> Any:
    """Return the function or module, or an instance of the class with `settings` ("name=value").

    This runs the code of the target. Every error of that code is raised as a ValueError.
    """
    where, _, name = target.rpartition(":")
    arguments = dict(map(_setting, settings))
    module = _imported(where)
    if not hasattr(module, name):
        near = get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name!r} not found in {where}{hint}")
    attention = getattr(module, name)
    if isinstance(attention, type):
        if "torch" in sys.modules:  # so that its initial values are the same each time
            sys.modules["torch"].manual_seed(0)
        try:
            return attention(**arguments)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"{name}({', '.join(settings)}) raised {type(error).__name__}: {error}"
                f"{_where(error)}; pass its arguments with --set name=value"
            ) from error
    return partial(attention, **arguments) if arguments else attention


def _imported(where: str) -> ModuleType:
    path = Path(where)
    if where.endswith(".py") and not path.is_file():
        raise ValueError(f"file {where!r} not found")
    # The same folder as Python adds for `python file.py` and `python -m`.
    sys.path.insert(0, str(path.resolve().parent) if where.endswith(".py") else "")
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        # This name cannot hide a standard module, for example if the file is named tokenize.py.
        spec = importlib.util.spec_from_file_location(f"checked {path.stem}", path)
        if spec is None or spec.loader is None:  # impossible for a file that ends with .py
            raise ImportError(where)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # so that `inspect` finds its source
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"importing {where} raised {type(error).__name__}: {error}{_where(error)}"
        ) from error
    return module


def _where(error: BaseException) -> str:
    """Return the line of the user's code that raised an error."""
    frames = user_frames(error)
    return f" (at {frames[-1]})" if frames else ""


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--set must be name=value, for example n_heads=4 (got {text!r})")
    try:
        return name, literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a string
