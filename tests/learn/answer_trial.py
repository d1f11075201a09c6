"""The trial of the graders. `python -m answer_trial` writes its table to docs/learn/answers.md.

Each file of the folder `answers` holds answers to one exercise, wrong and correct ones. An answer
is a title, the name of the fault ("none" for a correct answer), optionally the public source of
the mistake, and the learner's file:

    ## Softmax over the queries

    fault: softmax-axis
    source: [Title of the page](https://address)

    ```python
    import numpy as np
    ...
    ```

Two faults in one answer are written as `fault: no-scale + softmax-axis`.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from headway.learn.exercise import find
from headway.learn.grades import Grade
from headway.learn.worker import grade_here

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "learn" / "answers.md"
NO_NAMES = ("unknown", "error")  # described, but not named
ANSWER = re.compile(
    r"^## (?P<title>[^\n]+)\n\n"
    r"fault: (?P<fault>[^\n]+)\n"
    r"(?:source: (?P<source>[^\n]+)\n)?"
    r"\n```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Case(NamedTuple):
    """An answer to an exercise; fault: the expected name, None for a correct answer."""

    exercise: str
    title: str
    fault: str | None
    source: str
    code: str


def cases() -> list[Case]:
    """Return all answers, in the order of the exercises."""
    found = []
    for file in sorted((HERE / "answers").glob("*.md")):
        text = file.read_text()
        matches = [*ANSWER.finditer(text)]
        assert len(matches) == len(re.findall("^## ", text, re.MULTILINE)), file.name
        for match in matches:
            fault = None if match["fault"] == "none" else match["fault"]
            source = match["source"] or ""
            found.append(Case(file.stem[3:], match["title"], fault, source, match["code"]))
    return found


def said(case: Case) -> Grade:
    """Grade an answer, in this process."""
    exercise = find(case.exercise)
    with TemporaryDirectory() as folder:
        file = Path(folder) / exercise.file
        file.write_text(case.code, encoding="utf-8")
        return grade_here(file, exercise)


def page() -> str:
    """Return the page: for each answer, what was said."""
    graded = [(case, said(case)) for case in cases()]
    wrong = [(case, grade) for case, grade in graded if case.fault]
    named = sum(case.fault == grade.fault not in NO_NAMES for case, grade in wrong)
    passed = sum(grade.passed for case, grade in graded if not case.fault)
    lines = [
        "# What the graders say",
        "",
        "Typical wrong answers to the exercises of `headway learn`, many of them from public "
        "questions and issues, and correct but unusual ones. "
        "`python -m answer_trial` in `tests/learn` grades them and writes this page; the answers "
        "are in [`tests/learn/answers`](../../tests/learn/answers).",
        "",
        f"**{named} of {len(wrong)} wrong answers ({named / len(wrong):.0%}) are named, "
        f"and {passed} of {len(graded) - len(wrong)} correct ones pass.**",
    ]
    for name in dict.fromkeys(case.exercise for case, _ in graded):
        exercise = find(name)
        lines += ["", f"## {exercise.number} {exercise.title}", ""]
        lines += ["| answer | fault | line | what is said | source |", "|---|---|---|---|---|"]
        for case, grade in graded:
            if case.exercise == name:
                message = "passes" if grade.passed else grade.message
                line = f"{grade.line}: `{grade.code}`" if grade.line else ""
                cells = (case.title, grade.fault or "", line, message, case.source)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
