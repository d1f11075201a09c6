"""The kill table: which check catches which mutant. `python -m kill_table` writes docs/check.md."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

from headway.check import CHECKS, Diagnosis, diagnose
from mutants import MUTANTS

PAGE = Path(__file__).parents[2] / "docs" / "check.md"


@cache
def diagnosed(name: str) -> Diagnosis:
    """What the doctor says of a mutant."""
    mutant = MUTANTS[name]
    return diagnose(mutant.attention, name=name, **mutant.declared)


def catchers(name: str) -> list[str]:
    """The checks that catch a mutant."""
    return [finding.check for finding in diagnosed(name).failed]


def alone() -> Counter[str]:
    """How many mutants each check is the only one to catch."""
    return Counter(result[0] for result in map(catchers, MUTANTS) if len(result) == 1)


def kills() -> str:
    """The kill table, in Markdown; the check that a mutant was made for is in bold."""
    rows = []
    for name, mutant in MUTANTS.items():
        result = (f"**{c}**" if c == mutant.caught_by else c for c in catchers(name))
        rows.append(f"| {name} | {mutant.declared['kind']} | {mutant.why} | {', '.join(result)} |")
    return "\n".join(["| mutant | kind | its bug | caught by |", "|---|---|---|---|", *rows])


def promises() -> str:
    """The checks, in Markdown, with the number of mutants that nothing else catches."""
    sole = alone()
    rows = [
        f"| {name} | {', '.join(check.kinds)} | {', '.join(check.needs)} | {check.promise} "
        f"| {sole[name]} |"
        for name, check in CHECKS.items()
    ]
    head = "| check | kinds | features | what holds when it passes | caught by it alone |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, table in (("checks", promises()), ("kills", kills())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda result, table=table: result[1] + table + result[2], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
