"""The grade of a wrong softmax in docs/learn.md, as the terminal shows it.

PYTHONPATH=tests/learn python -m grade_sample
"""

import re
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from headway.learn import folder, terminal
from headway.learn.exercise import find
from headway.learn.worker import grade_here

PAGE = Path(__file__).parents[2] / "docs" / "learn.md"
SAMPLE = re.compile(r"(?<=<!-- grade -->\n```\n).*?(?=```\n)", re.DOTALL)
WIDTH = 80
ANSWER = "exps = np.exp(scores)\n    return exps / exps.sum(axis=0)"


def sample():
    """The output for an answer to exercise 3 with a sum over the wrong axis."""
    softmax = find("softmax")
    shown = Path("learn") / softmax.file
    console = Console(file=StringIO(), width=WIDTH)
    with TemporaryDirectory() as temporary:
        file = Path(temporary) / softmax.file
        text = folder.stub(softmax).replace("raise NotImplementedError", ANSWER)
        file.write_text(text, encoding="utf-8")
        grade = grade_here(file, softmax)
    assert not grade.passed
    console.print(terminal.heading(softmax, shown), terminal.grade(softmax, shown, grade, WIDTH))
    lines = console.file.getvalue().strip().splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(SAMPLE.sub(lambda _: sample(), text), encoding="utf-8")
