"""Why each step and each rung exists: the texts of why.md, read by the page, `show` and the docs.

Uses the standard library only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class Why:
    """The problem that a step solves, what breaks without it, and what was measured.

    report: the path of the report with the measurement, such as docs/lab/climb/report.md; None if
    the example shows the number.
    """

    problem: str
    without: str
    measured: str
    report: str | None


_SECTION = re.compile(
    r"^## (?P<names>.+)\n\n"
    r"Problem: (?P<problem>.+)\n\n"
    r"Without it: (?P<without>.+)\n\n"
    r"Measured: (?P<measured>.+?)(?: \[report\]\((?P<report>.+)\))?$",
    re.MULTILINE,
)


def read(text: str) -> dict[str, Why]:
    """The texts by the name of the step or rung; names in one heading share a text."""
    return {
        name: Why(*section.group("problem", "without", "measured", "report"))
        for section in _SECTION.finditer(text)
        for name in section["names"].split(", ")
    }


WHY: Mapping[str, Why] = MappingProxyType(
    read(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
)


def markdown() -> str:
    """The texts as a section of docs/ladder.md."""
    lines = []
    for why in dict.fromkeys(WHY.values()):
        report = "" if why.report is None else f" ([report]({why.report.removeprefix('docs/')}))"
        names = ", ".join(name for name in WHY if WHY[name] == why)
        lines.append(
            f"### {names}\n\n{why.problem}\n\n"
            f"- Without it: {why.without}\n- Measured: {why.measured}{report}"
        )
    return "\n\n".join(lines)


if __name__ == "__main__":
    print(markdown())
