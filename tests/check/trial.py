"""The trial of the doctor. `python -m trial` writes its tables to docs/check.md.

Faulty attentions (`variants`) must be named; right but unusual ones (`unusual`) must pass.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from headway.check import CHECKS, Diagnosis, diagnose
from mutants import MUTANTS
from unusual import UNUSUAL, Unusual
from variants import VARIANTS, Variant

PAGE = Path(__file__).parents[2] / "docs" / "check.md"
USUAL = {"kind", "engine", "width", "heads", "head_dim", "vocabulary"}


class Said(NamedTuple):
    """What the doctor said of a faulty attention: all diagnoses in order, and the right one.

    rank: its number, from 1; None if the fault was not named. is_false: something else was said
    that is not so.
    """

    diagnoses: list[str]
    rank: int | None
    is_false: bool


def said(variant: Variant) -> Said:
    """Examine a faulty attention."""
    failed = diagnose(variant.attention, **variant.declared).failed
    diagnoses = [*dict.fromkeys(finding.diagnosis for finding in failed)]
    right = [i for i, text in enumerate(diagnoses, 1) if re.search(variant.expected, text, re.I)]
    is_false = any(re.search(variant.false, text, re.I) for text in diagnoses)
    return Said(diagnoses, right[0] if right else None, is_false)


def examined(unusual: Unusual) -> Diagnosis:
    """Examine a right but unusual attention."""
    return diagnose(unusual.attention, **unusual.declared)


@cache
def diagnosed(name: str) -> Diagnosis:
    """Diagnose a mutant."""
    mutant = MUTANTS[name]
    return diagnose(mutant.attention, name=name, **mutant.declared)


def catchers(name: str) -> list[str]:
    """Return the checks that fail for a mutant."""
    return [finding.check for finding in diagnosed(name).failed]


def alone() -> Counter[str]:
    """Count the mutants that only one check finds, apart from `formula`, which finds most."""
    found = (catchers(name) for name in MUTANTS)
    others = (failed if failed == ["formula"] else [*{*failed} - {"formula"}] for failed in found)
    return Counter(failed[0] for failed in others if len(failed) == 1)


def checks() -> str:
    """Return the table of checks."""
    counts = alone()
    rows = [
        f"| {name} | {', '.join(check.kinds)} | {', '.join(check.needs)} | {check.promise} "
        f"| {counts[name]} |"
        for name, check in CHECKS.items()
    ]
    head = "| check | kinds | features | property | bugs that only it finds |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def faults() -> str:
    """Return the table of faulty attentions, and the two percentages."""
    results = {variant.name: said(variant) for variant in VARIANTS}
    count = len(results)
    named = sum(r.rank is not None and not r.is_false for r in results.values())
    first = sum(r.rank == 1 and not r.is_false for r in results.values())
    rows = []
    for variant in VARIANTS:
        result = results[variant.name]
        rank = "-" if result.rank is None else str(result.rank)
        text = result.diagnoses[0] if result.diagnoses else "nothing"
        cells = (variant.name, variant.declared["kind"], text, rank, variant.source)
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(
        [
            f"**{named} of {count} faults ({named / count:.0%}) are named, {first} "
            f"({first / count:.0%}) in the first place**, without a false statement beside it.",
            "",
            "| fault | kind | what is said first | rank | source |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def unusual() -> str:
    """Return the table of right but unusual attentions."""
    results = [(each, examined(each)) for each in UNUSUAL]
    good = sum(result.ok for _, result in results)
    rows = []
    for each, result in results:
        declared = {k: v for k, v in each.declared.items() if k not in USUAL and v}
        declared = {k: "..." if callable(v) else v for k, v in declared.items()}
        needed = ", ".join(f"{name}={_short(value)}" for name, value in declared.items())
        failed = ", ".join(finding.check for finding in result.failed)
        cells = (each.name, each.declared["kind"], needed, failed or "passes", each.source)
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(
        [
            f"**{good} of {len(results)} right but unusual attentions pass.**",
            "",
            "| attention | kind | declared | result | source |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _short(value: object) -> str:
    return "+".join(value) if isinstance(value, (tuple, list)) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page(text: str) -> str:
    """Return the page with new tables."""
    for name, table in (("checks", checks()), ("faults", faults()), ("unusual", unusual())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
