"""The learner's file, imported, and how graders call what is in it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import linecache
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.abc import ExecutionLoader
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from headway.check.errors import user_frames
from headway.check.libraries import LIBRARIES, Library
from headway.check.modules import is_module
from headway.learn.exercise import DEFINITIONS, Exercise, public
from headway.learn.grades import Wrong
from headway.training.memory import is_exhausted

# Errors of NumPy, PyTorch and JAX for arrays whose shapes do not fit.
NOT_FITTING = "mismatch|broadcast|cannot be multiplied|must match|aligned|batch2|dot_general"
MODULE = "answer "  # how the names of imported answers begin
# Names of arguments that mean the same.
ALIASES = {
    "weights": ("weights", "attention_weights", "attn_weights", "attn", "attention", "a", "w"),
    "x": ("x", "inputs", "input", "embeddings", "tokens", "values", "v"),
    "queries": ("queries", "query", "q"),
    "keys": ("keys", "key", "k"),
    "values": ("values", "value", "v"),
    "W_query": ("w_query", "w_queries", "w_q", "wq", "wquery", "query_weights"),
    "W_key": ("w_key", "w_keys", "w_k", "wk", "wkey", "key_weights"),
    "W_value": ("w_value", "w_values", "w_v", "wv", "wvalue", "value_weights"),
    "base": ("base", "theta", "rope_theta"),
    "heads": ("heads", "num_heads", "n_heads", "n_head", "nhead", "h"),
    "W_output": ("w_output", "w_out", "w_o", "wo", "woutput", "output_weights"),
}


@dataclass(frozen=True)
class Answer:
    """The function or class that an exercise asks for.

    entry: the function, or the class of a module. libraries: whose arrays it may take; only one is
    left as soon as a call with arrays works. calls: the numbers of the calls; only the first one
    may print, because the learner knows of one.
    """

    entry: Any
    libraries: list[Library]
    source: str
    calls: Iterator[int] = field(default_factory=count)

    @property
    def library(self) -> Library:
        """The library of the arrays that the answer takes."""
        return self.libraries[0]

    @property
    def is_class(self) -> bool:
        """Whether the answer is a class, such as a module of PyTorch."""
        return isinstance(self.entry, type)

    def run(self, *inputs: Any, of: Any = None, **options: Any) -> Any:
        """Call the answer and return its result as it is.

        NumPy arrays, also those in `options`, become arrays of its library, float32 if they are
        floating-point numbers. of: what to call instead of `entry`, such as an instance of it.
        """
        failure = None
        for library in [*self.libraries]:
            try:
                result = self._run(library, of or self.entry, inputs, options)
            except Wrong as wrong:
                failure = failure or wrong
            else:
                if any(isinstance(value, np.ndarray) for value in (*inputs, *options.values())):
                    self.libraries[:] = [library]
                return result
        assert failure is not None
        raise failure

    def _run(self, library: Library, called: Any, inputs: Any, options: Mapping[str, Any]) -> Any:
        inputs = [given(value, library) for value in inputs]
        options = {name: given(value, library) for name, value in options.items()}
        with errors_as_wrong(), _silence() if next(self.calls) else nullcontext():
            return called(*inputs, **options)

    def call(
        self, *inputs: Any, of: Any = None, shape: tuple[int, ...] | None = None, **options: Any
    ) -> np.ndarray:
        """Call the answer, as `run` does, and return its result as a NumPy array.

        shape: if the result is a tuple, such as (context, weights), the array with this shape is
        taken. Raises `Wrong` if the result is no array.
        """
        return self.array(self.run(*inputs, of=of, **options), shape)

    def call_named(
        self, inputs: Mapping[str, Any], shape: tuple[int, ...] | None = None, of: Any = None
    ) -> np.ndarray:
        """Call the answer with arguments whose order is not known, as `call` does.

        If its parameters have known names (`ALIASES`), the arguments are passed by name; otherwise
        in the order of `inputs`.
        """
        names = self.names(of)
        known = {
            name: next((n for n in names if n.lower() in ALIASES.get(name, (name.lower(),))), None)
            for name in inputs
        }
        if len({*known.values()} - {None}) < len(inputs):
            return self.call(*inputs.values(), of=of, shape=shape)
        by_name = {str(known[name]): value for name, value in inputs.items()}
        return self.call(of=of, shape=shape, **by_name)

    def names(self, of: Any = None) -> list[str]:
        """Return the names of the parameters of a function or of a module's `forward`."""
        called = of or self.entry
        try:
            return [*inspect.signature(called.forward if is_module(called) else called).parameters]
        except (TypeError, ValueError):  # compiled
            return []

    def given(self, value: Any) -> Any:
        """Convert a NumPy array to the library of the answer; return anything else as it is."""
        return given(value, self.library)

    def array(self, result: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Convert a result to NumPy; `shape` as in `call`. Raises `Wrong` if it is no array."""
        if result is None:
            raise Wrong("no-result", "it returned None; is the return statement missing?")
        if isinstance(result, tuple) and shape is not None and result:
            shapes = [tuple(getattr(part, "shape", ())) for part in result]
            result = result[shapes.index(shape) if shape in shapes else 0]
        if isinstance(result, np.generic | int | float):
            return np.array(result, dtype=float)
        library = _library_of(result)
        if library is None and isinstance(result, list):
            with suppress(Exception):  # such as rows of different lengths
                result, library = np.array(result), LIBRARIES["numpy"]()
        if library is None:
            advice = "return an array"
            if isinstance(result, list | tuple):
                advice += ", for example np.array(...) or torch.stack(...) of its elements"
            raise Wrong("not-an-array", f"it returned {kind_of(result)}; {advice}")
        with library.session():  # JAX has float64 only there
            numbers = library.numpy(result)
        if numbers.dtype.kind not in "fiub":
            kinds = {"U": "text", "S": "bytes", "O": "objects", "c": "complex numbers"}
            found = kinds.get(numbers.dtype.kind, numbers.dtype.name)
            raise Wrong("not-numbers", f"it returned an array of {found}; return real numbers")
        return numbers.astype(np.float64)


def kind_of(result: Any) -> str:
    """Return what a result is: "a list", "an instance of the class Model"."""
    kind = type(result)
    is_class = kind.__module__ != "builtins"
    return f"an instance of the class {kind.__name__}" if is_class else f"a {kind.__name__}"


def given(value: Any, library: Library) -> Any:
    """Convert a NumPy array to a library; return anything else as it is."""
    return library.array(value, "float32") if isinstance(value, np.ndarray) else value


def load(path: Path, source: str, exercise: Exercise) -> Answer:
    """Import the learner's file and return the function or class that the exercise asks for.

    This runs the code. Raises `Wrong` for its errors, or if no such function can be found.
    """
    with errors_as_wrong():
        tree = ast.parse(source, str(path))
        module = _imported(path, source)
    entry = getattr(module, exercise.entry, None)
    if not callable(entry):
        defined = public(tree)
        found = [name for name in defined if name not in _used_by_others(tree)]
        if len(found) != 1:
            names = ", ".join(defined) or "no function"
            raise Wrong(
                "no-answer",
                f"the file defines {names}, but not {exercise.entry}; name it as in the task",
            )
        entry = getattr(module, found[0])
        if isinstance(entry, type) and callable(getattr(entry, exercise.entry, None)):
            raise Wrong(
                "no-answer",
                f"the function {exercise.entry} is defined inside of the class {found[0]}; define "
                "it outside, as in the task",
                look=f"def {exercise.entry}",
            )
    return Answer(entry, _libraries(tree), source)


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        yield


@contextmanager
def errors_as_wrong() -> Iterator[None]:
    """Convert errors of the answer to `Wrong`, whose cause is the error; ignore its warnings.

    MemoryError ends the grade: no further call could get memory while its objects exist.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Wrong, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise Wrong(*described(error)) from error


def described(error: BaseException) -> tuple[str, str]:
    """Return the name of the fault and the message for an error."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, NotImplementedError):
        return "not-started", "not started: replace `raise NotImplementedError` with your code"
    if isinstance(error, SyntaxError):
        return "syntax", f"Python cannot read the file: {error.msg}"
    if isinstance(error, SystemExit):
        return "exit", "it calls exit(); remove the call, and return the result instead"
    if isinstance(error, RecursionError):
        return "recursion", "it calls itself without end; a function that calls itself must stop"
    if isinstance(error, EOFError):
        return "input", "it waits for input, but nobody types here; use the arguments instead"
    if isinstance(error, ModuleNotFoundError):
        return "import", f"{text}; use NumPy, PyTorch or JAX, and install what you import"
    if is_exhausted(error):
        text = "it needs more than 2 GB of memory; are the shapes what you expect, or does a list "
        return "memory", text + "grow without end?"
    if isinstance(error, TypeError) and not user_frames(error):  # raised by the call itself
        return "arguments", f"it must take the arguments of the stub: {text}"
    found = _shapes_at(error) if re.search(NOT_FITTING, text) else None
    return found or ("error", f"it raised {type(error).__name__}" + (f": {text}" if text else ""))


def _shapes_at(error: BaseException) -> tuple[str, str] | None:
    """Describe an error with the shapes of the arrays in the line of the answer that raised it."""
    frames = [*traceback.walk_tb(error.__traceback__)]
    own = [pair for pair in frames if pair[0].f_globals.get("__name__", "").startswith(MODULE)]
    if not own:
        return None
    frame, number = own[-1]
    line = linecache.getline(frame.f_code.co_filename, number, frame.f_globals).strip()
    shapes = {
        name: tuple(frame.f_locals[name].shape)
        for name in dict.fromkeys(re.findall(r"\w+", line))
        if isinstance(getattr(frame.f_locals.get(name), "shape", None), tuple)
    }
    if not shapes:
        return None
    listed = ", ".join(f"{name} has the shape {shape}" for name, shape in shapes.items())
    message = f"the shapes do not fit ({type(error).__name__}): {listed}"
    for name, shape in shapes.items():
        if len(shape) > 2 and re.search(rf"\b{name}\.T\b", line):
            message += f". {name}.T reverses all {len(shape)} axes: exchange the last two with "
            return "axes-reversed", f"{message}{name}.swapaxes(-1, -2)"
    if ".weight" in line:
        message += ". The weight of nn.Linear is (d_out, d_in): call the layer with x instead"
    return "shapes", message


def _imported(path: Path, source: str) -> ModuleType:
    """Run the source as a module of its own. No bytecode is written, and none is read."""
    loader = _Loader(path, source)
    spec = importlib.util.spec_from_loader(MODULE + path.stem, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and `inspect` look there
    # What shows lines of the source shows this text, not that of a newer file.
    linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))
    loader.exec_module(module)
    return module


class _Loader(ExecutionLoader):
    def __init__(self, path: Path, source: str) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_source(self, fullname: str) -> str:
        return self._source


def _used_by_others(tree: ast.Module) -> set[str]:
    """Return the functions and classes that another one in the file uses: helpers."""
    return {
        node.id
        for definition in tree.body
        if isinstance(definition, DEFINITIONS)
        for node in ast.walk(definition)
        if isinstance(node, ast.Name) and node.id != definition.name
    }


def _libraries(tree: ast.Module) -> list[Library]:
    """Return the libraries whose arrays the file may expect: those that it imports, and NumPy."""
    imported = {"numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    return [library() for name, library in LIBRARIES.items() if name in imported]


def _library_of(result: Any) -> Library | None:
    """Return the library of an array; None if it is no array."""
    imported = [library() for name, library in LIBRARIES.items() if name in sys.modules]
    return next((library for library in imported if library.is_array(result)), None)
