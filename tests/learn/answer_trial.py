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
from typing import Any, NamedTuple

from headway.check.libraries import LIBRARIES
from headway.learn.answer import Answer
from headway.learn.graders.table import GRADERS
from headway.learn.grades import Grade, Wrong

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
    """Grade an answer."""
    names: dict[str, Any] = {"__name__": "answer"}
    exec(compile(case.code, case.title, "exec"), names)
    defined = [v for v in names.values() if getattr(v, "__module__", "") == "answer"]
    library = "torch" if "torch" in case.code else "jax" if "jax" in case.code else "numpy"
    try:
        GRADERS[case.exercise](Answer(defined[-1], LIBRARIES[library](), case.code))
    except Wrong as wrong:
        return Grade(False, wrong.fault, wrong.message, example=wrong.example)
    return Grade(True, None, "right")
