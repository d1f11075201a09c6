"""`diagnose` runs all checks on one attention."""

import io
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np

from headway.check import source
from headway.check.adapters import known
from headway.check.causes import cause_of
from headway.check.declaration import Declaration
from headway.check.errors import Refused
from headway.check.findings import Diagnosis, Finding, Outcome, not_applicable, not_tested
from headway.check.libraries import undisturbed
from headway.check.modules import unchanged
from headway.check.probe import NOT_FINITE, subject_of
from headway.check.properties import CHECKS
from headway.check.properties.check import Check
from headway.check.properties.order import TRAINING, UNDECLARED
from headway.check.signature import kind_of
from headway.check.subject import Subject, call_directly
from headway.nearest import suggestion


def diagnose(
    attention: Any,
    *,
    only: Iterable[str] = (),
    name: str | None = None,
    call: Callable[..., Any] | None = None,
    **declared: Any,
) -> Diagnosis:
    """Check an attention implementation for known faults.

    attention: a function or a module of PyTorch, JAX or NumPy. Nothing has to be declared for
        `nn.MultiheadAttention`, `scaled_dot_product_attention`, `nn.TransformerEncoderLayer`,
        `jax.nn.dot_product_attention`, causal models of `transformers` and Headway's modules.
    declared: the fields of `headway.check.Declaration`. By default the kind is that which the
        signature suggests.
    only: the names of the checks to run; by default all.
    call: an adapter for other signatures, called as `call(attention, *inputs, **options)`.

    What the attention prints is hidden. The module's mode, parameters and buffers, PyTorch's global
    settings and the random states are restored. Raises ValueError for an invalid declaration.
    """
    checks = {name: _named(name) for name in only} if only else CHECKS
    if not callable(attention):
        raise ValueError(f"expected a function or a module (got {attention!r})")
    if isinstance(attention, type):
        raise ValueError(
            f"expected an instance, not the class {attention.__qualname__}: create one"
        )
    notes = []
    adapter = known(attention) if call is None and "kind" not in declared else None
    if adapter is not None:
        found, call = adapter
        declared = {**found, **declared}
        if parts := [f"{name}={found[name]:g}" for name in OF_CONFIG if found.get(name)]:
            notes.append(f"declared because of its config: {', '.join(parts)}")
    if "kind" not in declared:
        declared["kind"] = kind_of(attention)
        if declared["kind"] is None:
            raise ValueError(
                f"declare the kind of {source.name_of(attention)}: kind='qkv' (queries, keys, "
                "values), 'self' (x) or 'model' (tokens); on the command line --kind"
            )
        notes.append(f"the kind {declared['kind']!r} is taken from the signature")
    declaration = Declaration.of(**declared)
    for skipped in declaration.skip:
        _named(skipped)
    checks = {key: check for key, check in checks.items() if key not in declaration.skip}
    if not checks:
        raise ValueError("no check is left: `only` and `skip` name the same checks")
    printed = io.StringIO()
    # The checks provoke warnings, overflow and NaN on purpose.
    with (
        unchanged(attention),
        warnings.catch_warnings(action="ignore"),
        np.errstate(all="ignore"),
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        subject = subject_of(attention, declaration, call or call_directly)
        with undisturbed(subject.library):
            findings = [_finding(subject, key, check) for key, check in checks.items()]
            findings = _one_cause(subject, findings)
    if lines := printed.getvalue().count("\n"):
        notes.append(f"it prints: {lines} lines are not shown")
    if changed := subject.library.changed:
        notes.append(
            f"it changes global settings, which were restored: {', '.join(sorted(changed))}"
        )
    name, library = name or source.name_of(attention), subject.library.name
    return Diagnosis(name, declaration.kind, library, tuple(findings), tuple(notes))


OF_CONFIG = ("window", "scale", "softcap", "rotary_base")  # what adapters read in a config


# Checks whose failures have causes of their own.
SEPARATE = {"used", "untouched", "strided", "precise", "derivative", "dropout", "labels", "tied"}
OF_MASKS = {"masked", "deleted", "mask-and-causal", "documents"}
# If no cause is proven, a failure of the first group says most, in this order, and one of the
# second group follows from it.
LEADING = (
    *("batch", "groups", "future", "rows", "order", "masked", "cache", "prefix"),
    *("duplicated", "past"),
)
FOLLOWING = {
    *("constant", "shifted", "scale", "sharp", "gradient", "derivative", "precise", "deleted"),
    *LEADING,
}


def _one_cause(subject: Subject, findings: list[Finding]) -> list[Finding]:
    """Give failures with one cause the same diagnosis; the cause itself is proven if possible."""
    by_check = {finding.check: finding for finding in findings if finding.verdict == "fail"}
    for cause in by_check.values():
        is_rounding = cause.check == "precise" and subject.rounding > 1e-5
        is_fact = cause.diagnosis in (UNDECLARED, TRAINING)
        if cause.check == "repeatable" or is_fact or is_rounding:
            return _explained(findings, {*by_check}, cause, proven=True)
    explained = {*by_check} - SEPARATE
    if not explained & OF_MASKS:
        explained -= {"dead-rows"}
    if subject.problem and NOT_FINITE not in subject.problem:
        return findings
    if "untouched" in by_check and "strided" in by_check:  # expanded inputs cannot be written to
        findings = _explained(findings, {"strided"}, by_check["untouched"], proven=False)
    suspect = cause_of(subject, explained) if explained else None
    if suspect is not None:
        if "mask" in suspect.diagnosis:
            explained |= {*by_check} & {"dead-rows"}
        first = next(finding for finding in findings if finding.check in explained)
        look = _look(subject, suspect.look) or first.look
        cause = replace(
            first, diagnosis=suspect.diagnosis, fix=suspect.fix, look=look, declare=suspect.declare
        )
        return _explained(findings, explained, cause, proven=True)
    if "runs" in by_check and "NaN" in by_check["runs"].diagnosis:
        masks = OF_MASKS | {"dead-rows"}
        return _explained(findings, {*by_check} & masks, by_check["runs"], proven=False)
    leading = next((by_check[name] for name in LEADING if name in by_check), None)
    if leading is None:
        return findings
    return _explained(findings, {*by_check} & FOLLOWING, leading, proven=False)


def _explained(
    findings: list[Finding], checks: set[str], cause: Finding, *, proven: bool
) -> list[Finding]:
    """Copy the diagnosis of a cause to the findings of some checks."""
    same = {name: getattr(cause, name) for name in ("diagnosis", "fix", "look", "declare")}
    return [
        replace(finding, **same, proven=proven) if finding.check in checks else finding
        for finding in findings
    ]


def _named(name: str) -> Check:
    if name not in CHECKS:
        raise ValueError(f"unknown check {name!r}; {suggestion(name, CHECKS)}")
    return CHECKS[name]


def _finding(subject: Subject, name: str, check: Check) -> Finding:
    outcome = _outcome(subject, name, check)
    return Finding(
        check=name,
        promise=check.promise,
        look=_look(subject, check.look) if outcome.verdict == "fail" and not outcome.trace else (),
        **vars(outcome),
    )


def _outcome(subject: Subject, name: str, check: Check) -> Outcome:
    declared = subject.declared
    if declared.kind not in check.kinds:
        return not_applicable(f"for kind {' or '.join(check.kinds)}")
    missing = [feature for feature in check.needs if feature not in declared.features]
    if missing:
        return not_applicable(f"the feature {missing[0]!r} is not declared")
    reason = check.applies(subject)
    if reason is not None:
        return not_applicable(reason)
    if subject.problem and name != "runs":
        return not_tested("it does not run")
    try:
        return check.run(subject)
    except Refused as error:
        return not_tested(f"it {error}")
    except Exception as error:  # unexpected outputs must not stop the other checks
        message = " ".join(str(error).split())
        return not_tested(f"the check raised {type(error).__name__} for the outputs: {message}")


def _look(subject: Subject, pattern: str) -> tuple[str, ...]:
    """Return source lines of the attention that match."""
    if "statements" not in subject.memory:
        subject.memory["statements"] = source.statements(subject.attention)
    return source.matching(pattern, subject.memory["statements"])
