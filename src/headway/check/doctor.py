"""`diagnose`: every check on one attention, and what each found."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headway.check.adapters import known
from headway.check.engines import undisturbed
from headway.check.findings import Finding, Outcome, Report, not_applicable, unsupported
from headway.check.properties import CHECKS
from headway.check.properties.check import Check
from headway.check.properties.order import UNDECLARED
from headway.check.subjects import Declaration, Refused, Subject, left_alone


def diagnose(
    attention: Any,
    *,
    only: Iterable[str] = (),
    name: str | None = None,
    call: Callable[..., Any] | None = None,
    **declared: Any,
) -> Report:
    """Which of the known faults does this attention have?

    attention: a function or a module, of PyTorch, JAX or NumPy; or one that Headway knows by
        itself (`nn.MultiheadAttention`, `scaled_dot_product_attention`,
        `nn.TransformerEncoderLayer`, `jax.nn.dot_product_attention`, a causal model of
        `transformers`, Headway's own modules), and of which nothing need be declared.
    kind: "qkv": attention(queries, keys, values, **options) -> context;
        "self": attention(x (batch, tokens, width)) -> the same shape or another width;
        "model": attention(tokens (batch, tokens)) -> logits (batch, tokens, vocabulary).
        A tuple's first element is taken.
    features: the keywords that it understands, of `headway.check.FEATURES`.
    layout: qkv: "bhtd" (batch, heads, tokens, head_dim), "bthd" or "packed" (batch, tokens,
        heads * head_dim); heads, kv_heads, head_dim: qkv: sizes to try it with.
    width, vocabulary: self, model: the size that it was built for, where it cannot be seen.
    causal: it is causal in every call. positions: self: it knows where tokens stand (rotary,
        learned). block: self: a residual path or an MLP stands around the attention.
    mask_true: what True in its masks means, "attend" or "masked"; mask_shape: "keys"
        (batch, keys) or "full" (batch, 1, queries, keys).
    rotary: "half" or "interleaved", for the feature "positions".
    engine: "torch", "jax" or "numpy", if a function's library is not found out; device: PyTorch's.
    precision: "float32" for what computes in no higher one.
    only: the names of some checks. call: `call(attention, *inputs, **options)`, to adapt it.

    The module's mode, parameters and buffers and the random state are left as they were.
    Raises ValueError for a declaration that makes no sense.
    """
    checks = {each: _named(each) for each in only} if only else CHECKS
    if not callable(attention):
        raise ValueError(f"{attention!r} is no attention: give a function or a module")
    found = known(attention) if call is None and "kind" not in declared else None
    if found is not None:
        declared, call = {**found[0], **declared}, found[1]
    if "kind" not in declared:
        raise ValueError(
            f"say what {_name(attention)} is: kind='qkv' (queries, keys, values), 'self' (x) or "
            "'model' (tokens)"
        )
    declaration = Declaration.of(**declared)
    with left_alone(attention), _quiet():
        subject = Subject(attention, declaration, call)
        with undisturbed(subject.engine):
            findings = [_finding(subject, each, check) for each, check in checks.items()]
            findings = _one_cause(findings)
    return Report(name or _name(attention), declaration.kind, subject.engine.name, tuple(findings))


def _one_cause(findings: list[Finding]) -> list[Finding]:
    """Where all failures follow from one, they say so."""
    for cause in findings:
        if cause.verdict == "fail" and (
            cause.check == "repeatable" or cause.diagnosis == UNDECLARED
        ):
            return [
                replace(each, diagnosis=cause.diagnosis, mend=cause.mend, look=cause.look)
                if each.verdict == "fail"
                else each
                for each in findings
            ]
    return findings


def _named(name: str) -> Check:
    if name not in CHECKS:
        raise ValueError(f"no check is called {name!r}; the checks: {', '.join(CHECKS)}")
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
    except Exception as error:  # what comes out fits no check: say so, and go on with the others
        said = " ".join(str(error).split())
        return unsupported(f"its outputs fit no {name} check: {type(error).__name__}: {said}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Overflow and NaN are what the checks look for; nobody needs to be warned of them."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _name(attention: Any) -> str:
    while isinstance(attention, partial):
        attention = attention.func
    return getattr(attention, "__qualname__", None) or type(attention).__qualname__


def _lines(pattern: str, attention: Any, most: int = 3) -> list[str]:
    """The statements of an attention's own source that match, as `file:line: code`."""
    found = []
    for each in _sources(attention):
        try:
            text, first = inspect.getsourcelines(each)
            file = Path(inspect.getsourcefile(each) or "?").name
            tree = ast.parse(textwrap.dedent("".join(text)))
        except (OSError, TypeError, SyntaxError):  # built in, typed at a prompt, a lambda in a call
            continue
        for node in ast.walk(tree):
            said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if isinstance(node, (ast.Assign, ast.AugAssign, ast.Return, ast.Expr)) and not said:
                code = ast.unparse(node)
                if re.search(pattern, code):
                    found.append((file, max(first, 1) + node.lineno - 1, code[:100]))
    return [f"{file}:{line}: {code}" for file, line, code in sorted(found)[:most]]


def _sources(attention: Any) -> Iterator[Any]:
    """The function, or the classes of a module and its parts, but for the library's own."""
    while isinstance(attention, partial):
        attention = attention.func
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(attention, torch.nn.Module):
        yield attention if inspect.isroutine(attention) else type(attention)
        return
    seen = dict.fromkeys(type(module) for module in attention.modules())
    yield from (each for each in seen if not each.__module__.startswith("torch."))
