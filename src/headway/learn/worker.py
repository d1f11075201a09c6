"""Grade a file in this process: read it, run it, and call the grader of the exercise."""

from __future__ import annotations

import ast
import re
import resource
import traceback
from pathlib import Path

from headway.learn.answer import described, load
from headway.learn.exercise import DEFINITIONS, Exercise, public
from headway.learn.graders.table import GRADERS
from headway.learn.grades import Grade, Wrong

Line = tuple[int | None, str]  # the number of a line, and its code
IMPORTS = (ast.Import, ast.ImportFrom)
NO_LINE: Line = (None, "")
MEMORY = resource.getrlimit(resource.RLIMIT_AS)  # before a grade limits it


def grade_here(path: Path, exercise: Exercise, content: bytes | None = None) -> Grade:
    """Grade a file, or the content that it had. Its code runs in this process, without limits."""
    source = ""
    try:
        source = _read(path, exercise, content)
        remark = GRADERS[exercise.name](load(path, source, exercise))
    except Wrong as wrong:
        line, code = _raised_at(wrong.__cause__, path, source) or _matching(
            wrong.look, source, exercise.entry
        )
        return Grade(False, wrong.fault, _sentence(wrong.message), line, code, wrong.example)
    except MemoryError as error:
        resource.setrlimit(resource.RLIMIT_AS, MEMORY)  # the message needs memory too
        fault, message = described(error)
        line, code = _raised_at(error, path, source) or NO_LINE
        return Grade(False, fault, _sentence(message), line, code)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        message = f"The grader failed: {error!r} at {where}. Please report this."
        return Grade(False, "grader", message)
    return Grade(True, None, _sentence(remark or "correct"))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def _read(path: Path, exercise: Exercise, content: bytes | None) -> str:
    again = ""
    if path.name == exercise.file:
        again = f"; to get the stub again: headway learn --reset {exercise.number}"
    try:
        source = (path.read_bytes() if content is None else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise Wrong("not-utf-8", f"line {line} is not UTF-8 text; save the file as UTF-8") from None
    except FileNotFoundError:
        raise Wrong("no-file", f"the file does not exist{again}") from None
    except OSError as error:
        raise Wrong("no-file", f"the file cannot be read: {error.strerror}") from None
    if not source.strip():
        raise Wrong("empty", f"the file is empty{again}")
    return source


def _raised_at(error: BaseException | None, path: Path, source: str) -> Line | None:
    """Return the last line of the file in the traceback of an error."""
    if error is None:
        return None
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return _line(error.lineno or 1, source)
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [frame.lineno for frame in frames if frame.filename == str(path)]
    return _line(numbers[-1] or 1, source) if numbers else None


def _matching(pattern: str, source: str, entry: str) -> Line:
    """Return the first simple statement that matches a regular expression, as in `Wrong`.

    entry: the name of the function or class that the exercise asks for. The lines of a helper
    for the softmax match only an expression that looks for exponentials.
    """
    if not pattern:
        return NO_LINE
    tree = _parsed(source, entry)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    helpers = {
        node
        for function in functions[:-1]
        if "exp(" in (code := ast.unparse(function)) and "exp" not in pattern
        if not re.search("@|matmul|einsum|dot|bmm", code)
        for node in ast.walk(function)
    }
    statements = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n not in helpers]
    statements.sort(key=lambda node: node.lineno)
    for line in pattern.splitlines():
        for node in statements:
            if not hasattr(node, "body") and re.search(line, ast.unparse(node)):
                return _line(node.lineno, source)
    return NO_LINE


def _parsed(source: str, entry: str) -> ast.Module:
    """Parse a file without its docstrings, imports, and functions that are never used.

    None of them is the cause of a wrong result. entry: as in `_matching`.
    """
    tree = ast.parse(source)
    if entry in public(tree):  # otherwise the answer has another name, and nothing uses it either
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {entry}
        tree.body = [n for n in tree.body if not isinstance(n, DEFINITIONS) or n.name in used]
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [n for n in body if not _is_text(n) and not isinstance(n, IMPORTS)]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _line(number: int, source: str) -> Line:
    lines = source.splitlines()
    return number, lines[number - 1].strip() if number <= len(lines) else ""
