"""`headway learn`: the course, and the exercises that it grades."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from headway.cli.parameters import Switch


def learn(
    *,
    grade: Path | None = None,
    chapter: str | None = None,
    as_json: Annotated[Switch, Parameter(name="--json")] = False,
) -> None:
    """Learn attention by building it: a guide, and exercises whose mistakes are named.

    Parameters
    ----------
    grade
        Grade this file, which contains an answer to the exercise of --chapter.
    chapter
        Name or number of the exercise for --grade.
    as_json
        Print JSON.
    """
    from headway.learn import exercise, grading  # late: `headway --help` is fast

    if grade is None or chapter is None:
        raise ValueError("give --grade FILE --chapter NAME")
    result = grading.grade(grade, exercise.find(chapter))
    if as_json:
        print(json.dumps(result.as_json(), indent=2))
    else:
        print(result.message)
    if not result.passed:
        sys.exit(1)
