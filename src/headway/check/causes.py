"""Find the cause of failed checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from headway.check.comparison import compare
from headway.check.core import Core, core_of, weights_of
from headway.check.declaration import Declaration
from headway.check.errors import Refused
from headway.check.probe import width_of
from headway.check.subject import Subject, call_directly
from headway.check.suspects.steps import RIGHT, Suspect


def cause_of(subject: Subject, failed: set[str]) -> Suspect | None:
    """Return what causes the failed checks if that can be proven, else None.

    failed: the names of the failed checks that a fault of the formula or of a mask could explain.
    """
    core = core_of(subject)
    if core is None:
        return _in_a_part(subject) if failed & LEAKS else None
    comparison = compare(subject, core)
    if comparison.suspect is not None:
        return comparison.suspect
    if comparison.heads is None:
        return _through_keys(subject, core) if failed & LEAKS else None
    return None if core.project is None else _outside(subject, core.project, failed)


def _in_a_part(subject: Subject) -> Suspect | None:
    """Return in which part of a module a leak begins, and its cause there."""
    if subject.module is None:
        return None
    from headway.check import parts

    part = parts.first_leak(subject)
    if part is None:
        return None
    name, module = part
    kind = type(module).__name__
    if module is not subject.attention_in(subject.dtype):
        declared = Declaration(kind="self", causal=True, positions=True, width=width_of(module))
        inner = replace(
            subject,
            attention=module,
            declared=declared,
            call=call_directly,
            width=declared.width or 0,
        )
        inner.memory = {}
        try:
            core = core_of(inner)
            suspect = None if core is None else compare(inner, core).suspect
        except Refused:
            suspect = None
        if suspect is not None:
            return replace(suspect, diagnosis=f"in {name} ({kind}): {suspect.diagnosis}")
        where = f"{name} ({kind})"
    else:
        where = f"{kind}.forward, outside its submodules"
    return Suspect(
        f"later tokens have an influence on earlier ones from {where} on: its inputs do not depend "
        "on later tokens, but its output does (a missing mask; or a norm, a mean or another "
        "statistic over the tokens, or a convolution)",
        "mask before the softmax; statistics over the features of one token only",
        RIGHT,
        r"mask|softmax|norm|mean|std|sum\(|conv|pad|roll",
    )


LEAKS = {"future", "prefix", "gradient"}
BEFORE = (
    "the attention itself is right; what comes before it is not: queries, keys and values of a "
)


def _outside(
    subject: Subject, project: Callable[[np.ndarray], list[np.ndarray]], failed: set[str]
) -> Suspect | None:
    """Return a fault before or after an attention that is right itself."""
    (x,) = subject.inputs(subject.few_tokens)
    tokens = subject.few_tokens
    base = project(x)[:3]

    def changed(token: int, row: int = 0) -> np.ndarray:
        """Return which (batch, tokens) of queries, keys and values change with a token."""
        other = x.copy()
        other[row, token] += np.cos(np.arange(x.shape[-1]))
        after = project(other)[:3]
        change = [np.abs(a - b).max(axis=-1) for a, b in zip(after, base, strict=True)]
        return np.asarray(np.max(change, axis=0) > subject.noise)

    ahead = np.stack([changed(token)[0] for token in range(tokens)], axis=-1)
    is_leak = np.triu(ahead, 1).any()
    look, fix = r"norm|mean|std|sum\(|conv|pad|roll|shift|cum", "mean(dim=-1) of one token"
    if failed & LEAKS and is_leak:
        next_only = not np.triu(ahead, 2).any()
        what = (
            "token already depend on the next token: for example a convolution that is padded on "
            "both sides, or a shift in the wrong direction"
            if next_only
            else "token already depend on later tokens: for example a norm, a mean or another "
            "statistic over the tokens, outside the causal mask"
        )
        return Suspect(BEFORE + what, fix, RIGHT, look)
    if "batch" in failed and changed(0)[1].any():
        what = "batch row depend on other rows: for example a norm or mean over the batch"
        return Suspect(BEFORE + what, fix, RIGHT, look)
    if failed & {"order", "rows", "constant", "duplicated"}:
        equal = project(np.repeat(x[:, :1], tokens, axis=1))[:3]
        if any(np.abs(part - part[:, :1]).max() > subject.noise for part in equal):
            others = ahead & ~np.eye(tokens, dtype=bool)
            what = (
                "token already depend on other tokens: for example a convolution or a token shift"
                if others.any()
                else "token depend on its position: position information that was not declared"
            )
            return Suspect(BEFORE + what, "declare it", RIGHT, look, "positions=True (--positions)")
    if failed & (LEAKS | {"order", "rows", "constant", "duplicated", "batch"}) - {"gradient"}:
        return Suspect(
            "the attention itself is right, from queries, keys and values to the context; the "
            "fault is in what comes after it: for example a norm or mean over the tokens",
            fix,
            RIGHT,
            look,
        )
    return None


def _through_keys(subject: Subject, core: Core) -> Suspect | None:
    """Return a leak through the size of the weights of earlier tokens, or None.

    The weights of later tokens are 0, but change other weights.
    """
    random, tokens = np.random.default_rng(12), subject.longest
    queries, keys, _ = (random.normal(size=(2, tokens, width)) for width in core.widths)
    options = dict(subject.causal_options)
    base = weights_of(core, queries, keys, **options)
    keys[:, -1] = random.normal(size=keys[:, -1].shape) * 3
    other = weights_of(core, queries, keys, **options)
    later = np.triu(np.ones((tokens, tokens), bool), 1)
    largest = np.abs(base).max()
    if np.abs(base[..., later]).max() > subject.noise * largest:
        return None
    if np.abs(other - base)[..., :-1, :].max() <= subject.noise * largest:
        return None
    return Suspect(
        "the future takes part in the weights: later tokens get no weight themselves, because the "
        "causal mask hides them, but they change the weights of earlier ones: for example in a "
        "choice of keys (top-k), a norm or a sum over all keys",
        "mask before anything that compares keys with each other",
        RIGHT,
        r"topk|sort|norm|mean|sum\(|max|softmax|mask",
    )
