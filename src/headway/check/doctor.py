"""`diagnose` runs all checks on one attention."""

import ast
import inspect
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headway.check.adapters import known
from headway.check.declaration import Declaration
from headway.check.errors import Refused
from headway.check.findings import Diagnosis, Finding, Outcome, not_applicable, unsupported
from headway.check.libraries import undisturbed
from headway.check.modules import is_module, unchanged
from headway.check.probe import subject_of
from headway.check.properties import CHECKS
from headway.check.properties.check import Check
from headway.check.properties.order import UNDECLARED
from headway.check.subject import Subject, call_directly


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
    declared: the fields of `headway.check.Declaration`.
    only: the names of the checks to run; by default all.
    call: an adapter for other signatures, called as `call(attention, *inputs, **options)`.

    The module's mode, parameters and buffers and the random states are restored.
    Raises ValueError for an invalid declaration.
    """
    checks = {name: _named(name) for name in only} if only else CHECKS
    if not callable(attention):
        raise ValueError(f"expected a function or a module (got {attention!r})")
    adapter = known(attention) if call is None and "kind" not in declared else None
    if adapter is not None:
        declared, call = {**adapter[0], **declared}, adapter[1]
    if "kind" not in declared:
        raise ValueError(
            f"declare the kind of {_name(attention)}: kind='qkv' (queries, keys, values), "
            "'self' (x) or 'model' (tokens)"
        )
    declaration = Declaration.of(**declared)
    # The checks provoke warnings, overflow and NaN on purpose.
    with unchanged(attention), warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
        subject = subject_of(attention, declaration, call or call_directly)
        with undisturbed(subject.library):
            findings = [_finding(subject, key, check) for key, check in checks.items()]
    name, library = name or _name(attention), subject.library.name
    return Diagnosis(name, declaration.kind, library, tuple(_one_cause(findings)))


def _one_cause(findings: list[Finding]) -> list[Finding]:
    """If one failure explains the others, copy its diagnosis to all failures."""
    for cause in findings:
        if cause.verdict == "fail" and (
            cause.check == "repeatable" or cause.diagnosis == UNDECLARED
        ):
            return [
                replace(finding, diagnosis=cause.diagnosis, fix=cause.fix, look=cause.look)
                if finding.verdict == "fail"
                else finding
                for finding in findings
            ]
    return findings


def _named(name: str) -> Check:
    if name not in CHECKS:
        raise ValueError(f"unknown check {name!r}; available: {', '.join(CHECKS)}")
    return CHECKS[name]


def _finding(subject: Subject, name: str, check: Check) -> Finding:
    outcome = _outcome(subject, name, check)
    return Finding(
        check=name,
        promise=check.promise,
        look=tuple(_lines(check.look, subject.attention)) if outcome.verdict == "fail" else (),
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
        return unsupported("it does not run")
    try:
        return check.run(subject)
    except Refused as error:
        return unsupported(f"it {error}")
    except Exception as error:  # unexpected outputs must not stop the other checks
        message = " ".join(str(error).split())
        return unsupported(f"the check raised {type(error).__name__} for the outputs: {message}")


def _function(attention: Any) -> Any:
    """Return the function of a `partial`; anything else as it is."""
    while isinstance(attention, partial):
        attention = attention.func
    return attention


def _name(attention: Any) -> str:
    attention = _function(attention)
    return getattr(attention, "__qualname__", None) or type(attention).__qualname__


def _lines(pattern: str, attention: Any, most: int = 3) -> list[str]:
    """Return the statements in the source of an attention that match, as `file:line: code`."""
    matches = []
    for source in _sources(attention):
        try:
            text, first = inspect.getsourcelines(source)
            file = Path(inspect.getsourcefile(source) or "?").name
            tree = ast.parse(textwrap.dedent("".join(text)))
        except (OSError, TypeError, SyntaxError):  # no source: built in, interactive, or a lambda
            continue
        for node in ast.walk(tree):
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            statements = (ast.Assign, ast.AugAssign, ast.Return, ast.Expr)
            if isinstance(node, statements) and not is_docstring:
                code = ast.unparse(node)
                if re.search(pattern, code):
                    matches.append((file, max(first, 1) + node.lineno - 1, code[:100]))
    return [f"{file}:{line}: {code}" for file, line, code in sorted(matches)[:most]]


def _sources(attention: Any) -> Iterator[Any]:
    """Yield the function, or the classes of a module and its submodules outside PyTorch."""
    attention = _function(attention)
    if not is_module(attention):
        yield attention if inspect.isroutine(attention) else type(attention)
        return
    classes = dict.fromkeys(type(module) for module in attention.modules())
    yield from (cls for cls in classes if not cls.__module__.startswith("torch."))
