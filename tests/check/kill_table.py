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
    """Diagnose a mutant."""
    mutant = MUTANTS[name]
    return diagnose(mutant.attention, name=name, **mutant.declared)


def catchers(name: str) -> list[str]:
    """Return the checks that fail for a mutant."""
    return [finding.check for finding in diagnosed(name).failed]


def alone() -> Counter[str]:
    """Count the mutants for which each check is the only one that fails."""
    return Counter(failed[0] for failed in map(catchers, MUTANTS) if len(failed) == 1)


def kills() -> str:
    """Return the kill table in Markdown; the check that a mutant was made for is in bold."""
    rows = []
    for name, mutant in MUTANTS.items():
        failed = (f"**{c}**" if c == mutant.caught_by else c for c in catchers(name))
        rows.append(f"| {name} | {mutant.declared['kind']} | {mutant.why} | {', '.join(failed)} |")
    return "\n".join(["| mutant | kind | its bug | caught by |", "|---|---|---|---|", *rows])


def promises() -> str:
    """Return the checks in Markdown, with the number of mutants that no other check catches."""
    counts = alone()
    rows = [
        f"| {name} | {', '.join(check.kinds)} | {', '.join(check.needs)} | {check.promise} "
        f"| {counts[name]} |"
        for name, check in CHECKS.items()
    ]
    head = "| check | kinds | features | property | bugs that only it finds |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def page(text: str) -> str:
    """Return the page with new tables."""
    for name, table in (("checks", promises()), ("kills", kills())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
