"""The exercises, parsed from `exercises/NN_name.md`."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from headway.nearest import named

FOLDER = Path(__file__).with_name("exercises")
SECONDS = 10  # of the processor for a grade
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    task, hints: Markdown. stub: the file that the learner starts from. solution: a right answer.
    entry: the name of the function or class that the stub defines. seconds: of the processor that
    a grade may take. right: what a right result is called, "the right" or "one right" of several.
    """

    number: int
    name: str
    title: str
    task: str
    stub: str
    hints: tuple[str, ...]
    solution: str
    entry: str
    seconds: int
    right: str

    @property
    def file(self) -> str:
        """Return the name of the learner's file."""
        return f"{self.number:02}_{self.name}.py"

    def __str__(self) -> str:
        return f"{self.number} ({self.name})"


@cache
def exercises() -> dict[str, Exercise]:
    """Return the exercises by name, in order."""
    return {
        exercise.name: exercise for exercise in map(parsed, sorted(FOLDER.glob("[0-9][0-9]_*.md")))
    }


def find(name: str) -> Exercise:
    """Return the exercise with this name or number. Raises ValueError if there is none."""
    if not name.lstrip("+-").isdigit():
        return named(exercises(), name, "exercise")
    numbers = {exercise.number: exercise for exercise in exercises().values()}
    if int(name) not in numbers:
        raise ValueError(f"no exercise {name}: they are {min(numbers)} to {max(numbers)}")
    return numbers[int(name)]


def parsed(file: Path) -> Exercise:
    """Parse the file of an exercise: title, task and stub, hints, and solution.

    There may be a section Seconds, and one named Several right results.
    """
    text = file.read_text(encoding="utf-8")
    tokens, lines = MarkdownIt().parse(text), text.splitlines(keepends=True)
    sections: dict[str, tuple[str, list[Token]]] = {}
    starts = [index for index, token in enumerate(tokens) if token.type == "heading_open"]
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        first, last = tokens[start].map, tokens[end].map if end < len(tokens) else None
        assert first is not None
        body = "".join(lines[first[1] : last[0] if last else None]).strip()
        sections[tokens[start + 1].content] = (body, tokens[start:end])
    (title, (task, _)), *others = sections.items()
    stub = _code(sections[title][1])
    number, _, name = file.stem.partition("_")
    return Exercise(
        number=int(number),
        name=name,
        title=title,
        task=task.partition("```")[0].strip(),
        stub=stub,
        hints=tuple(body for heading, (body, _) in others if heading.startswith("Hint")),
        solution=_code(sections["Solution"][1]),
        entry=public(ast.parse(stub))[0],
        seconds=int(sections["Seconds"][0]) if "Seconds" in sections else SECONDS,
        right="one right" if "Several right results" in sections else "the right",
    )


def public(tree: ast.Module) -> list[str]:
    """Return the names of the public functions and classes that a file defines."""
    names = [node.name for node in tree.body if isinstance(node, DEFINITIONS)]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def _code(tokens: list[Token]) -> str:
    return next(token.content for token in tokens if token.type == "fence")
