"""What the doctor says: a finding a check, and the report of them all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "not applicable", "unsupported"]


@dataclass(frozen=True)
class Outcome:
    """What a check saw, against what it expected; when it failed, the likely bug and its cure."""

    verdict: Verdict
    measured: str = ""
    expected: str = ""
    diagnosis: str = ""
    mend: str = ""


def verdict(good: bool, measured: str, expected: str, diagnosis: str, mend: str) -> Outcome:
    """Pass or fail; the diagnosis and the cure are kept only when it failed."""
    if good:
        return Outcome("pass", measured, expected)
    return Outcome("fail", measured, expected, diagnosis, mend)


def not_applicable(reason: str) -> Outcome:
    """The check has no meaning for what was declared."""
    return Outcome("not applicable", diagnosis=reason)


def unsupported(reason: str) -> Outcome:
    """The check would have a meaning, but this attention or its library cannot be asked."""
    return Outcome("unsupported", diagnosis=reason)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. look: lines of source to look at, `file:line: text`."""

    check: str
    promise: str
    verdict: Verdict
    measured: str
    expected: str
    diagnosis: str
    mend: str
    look: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All findings about one attention, in the order of the checks."""

    name: str
    kind: str
    engine: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that are failures."""
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    def count(self, verdict: Verdict) -> int:
        """How many findings have this verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}
