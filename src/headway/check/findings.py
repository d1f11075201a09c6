"""The results of checks: one finding per check, and the diagnosis of an attention."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "not applicable", "not tested"]


@dataclass(frozen=True)
class Outcome:
    """What a check measured and expected; after a failure also the likely bug and its fix.

    trace: where an error was raised, as `file:line, in function: code`. proven: the diagnosis is a
    fact; otherwise it lists possible causes.
    """

    verdict: Verdict
    measured: str = ""
    expected: str = ""
    diagnosis: str = ""
    fix: str = ""
    trace: tuple[str, ...] = ()
    proven: bool = False


def verdict(good: bool, measured: str, expected: str, diagnosis: str, fix: str) -> Outcome:
    """Return a pass, or a failure with its diagnosis and fix."""
    if good:
        return Outcome("pass", measured, expected)
    return Outcome("fail", measured, expected, diagnosis, fix)


def not_applicable(reason: str) -> Outcome:
    """Return the outcome of a check that is meaningless for this declaration."""
    return Outcome("not applicable", diagnosis=reason)


def not_tested(reason: str) -> Outcome:
    """Return the outcome of a check that this attention or its library cannot run."""
    return Outcome("not tested", diagnosis=reason)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    declare: what to declare if this is no fault but intended, or "". look: suspicious source
    lines, as `file:line: text`.
    """

    check: str
    promise: str
    verdict: Verdict
    measured: str
    expected: str
    diagnosis: str
    fix: str
    trace: tuple[str, ...] = ()
    proven: bool = False
    look: tuple[str, ...] = ()
    declare: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings about one attention, in the order of the checks.

    notes: what else was noticed, for example that it prints.
    """

    name: str
    kind: str
    engine: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The failed checks."""
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    @property
    def untested(self) -> tuple[Finding, ...]:
        """The checks that apply but could not be run."""
        return tuple(finding for finding in self.findings if finding.verdict == "not tested")

    def count(self, verdict: Verdict) -> int:
        """Return the number of findings with this verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}
