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
