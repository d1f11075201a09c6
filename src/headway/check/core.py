"""The core of an attention: from queries, keys and values to the context.

A function of kind "qkv" is a core. In a module of kind "self", the core is what happens between the
projections: their outputs are replaced by any queries, keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from headway.check.errors import Refused
from headway.check.subject import Subject

TOKENS, BATCH = 5, 2  # of the inputs that find out what the projections are


@dataclass(frozen=True)
class Core:
    """The core of an attention, with all heads side by side.

    run(queries, keys, values, **options): arrays (batch, tokens, heads * head_dim), to the context.
    widths: the numbers of features of queries, keys and values. heads: the possible numbers of
    kv heads. project(x): queries, keys, values and the context of a module; None for kind "qkv".
    """

    run: Callable[..., np.ndarray]
    widths: tuple[int, int, int]
    heads: tuple[int, ...]
    project: Callable[[np.ndarray], list[np.ndarray]] | None = None


def core_of(subject: Subject) -> Core | None:
    """Return the core of an attention, or None if it is not found."""
    if "core" not in subject.memory:
        subject.memory["core"] = _found(subject)
    core: Core | None = subject.memory["core"]
    return core


def _found(subject: Subject) -> Core | None:
    if subject.kind == "qkv":
        return _of_function(subject)
    if subject.kind != "self" or subject.module is None:
        return None
    try:
        return _of_module(subject)
    except (Refused, ValueError):  # projections that do not fit together
        return None


def _of_function(subject: Subject) -> Core:
    counts, width = subject.head_counts, subject.declared.head_dim

    def run(*inputs: np.ndarray, **options: Any) -> np.ndarray:
        split = [
            array.reshape((*array.shape[:2], count, width)).swapaxes(1, 2)
            for array, count in zip(inputs, counts, strict=True)
        ]
        context = subject.run(split, **options).swapaxes(1, 2)
        return context.reshape((*context.shape[:2], -1))

    widths = tuple(count * width for count in counts)
    return Core(run, widths, (subject.declared.heads,))  # type: ignore[arg-type]


def _of_module(subject: Subject) -> Core | None:
    """Find the projections of a module by changing their outputs and looking what changes."""
    from headway.check import projections  # PyTorch was imported by the owner of the module

    (x,) = subject.inputs(TOKENS, batch=BATCH)
    token_major = _is_token_major(subject, x)

    def run(x: np.ndarray, replaced: dict[int, np.ndarray], **options: Any) -> projections.Run:
        return projections.run(subject, x, replaced, token_major=token_major, **options)

    base = run(x, {})
    if not base.projections:
        return None
    sources, last = _sources(lambda replaced: run(x, replaced), base)
    outputs = [base.projections[i].output for i in sources]
    ends = np.cumsum([0, *(output.shape[-1] for output in outputs)])

    def context(side_by_side: np.ndarray, **options: Any) -> np.ndarray:
        batch, tokens, _ = side_by_side.shape
        parts = (side_by_side[..., a:b] for a, b in pairwise(ends))
        result = run(
            subject.inputs(tokens, batch=batch)[0],
            dict(zip(sources, parts, strict=True)),
            **options,
        )
        return result.output if last is None else result.projections[last].read

    sites = [np.arange(a, b) for a, b in pairwise(ends)]
    names = [base.projections[i].name for i in sources]
    columns = _roles(context, np.concatenate(outputs, -1), sites, names, 10 * subject.noise)
    if columns is None:
        return None

    def core(*inputs: np.ndarray, **options: Any) -> np.ndarray:
        side_by_side = np.zeros((*inputs[0].shape[:2], ends[-1]))
        for which, array in zip(columns, inputs, strict=True):
            side_by_side[..., which] = array
        return context(side_by_side, **options)

    def project(x: np.ndarray) -> list[np.ndarray]:
        result = run(x, {})
        side_by_side = np.concatenate([result.projections[i].output for i in sources], -1)
        end = result.output if last is None else result.projections[last].read
        return [*(side_by_side[..., which] for which in columns), end]

    widths = tuple(len(which) for which in columns)
    smallest = int(np.gcd.reduce(widths))
    heads = [n for n in range(1, smallest + 1) if smallest % n == 0]
    return Core(core, widths, tuple(heads), project)  # type: ignore[arg-type]


def _is_token_major(subject: Subject, x: np.ndarray) -> bool:
    """Whether the rows of projections begin with the batch rows of the first token."""
    from headway.check import projections

    other = x.copy()
    other[0, 1] += 1
    for token_major in (False, True):
        before, after = (
            projections.run(subject, values, token_major=token_major).projections
            for values in (x, other)
        )
        if before and not (after[0].output != before[0].output)[1:].any():
            return token_major
    return False


def _sources(run: Callable[..., Any], base: Any) -> tuple[list[int], int | None]:
    """Return the projections to queries, keys and values, and the first one after the attention.

    After the attention, a row depends on other rows of the queries, keys and values.
    """
    count, token = len(base.projections), 2
    touches, crosses = np.zeros((count, count), bool), np.zeros((count, count), bool)
    curved = np.zeros((count, count), bool)
    for i, projection in enumerate(base.projections):
        step = np.zeros_like(projection.output)
        step[:, token] = np.random.default_rng(i).normal(size=step[:, token].shape)
        near, far = (run({i: projection.output + size * step}) for size in (1, 2))
        for j in range(i + 1, count):
            start = base.projections[j].read
            change, twice = (_change(start, r.projections[j].read) for r in (near, far))
            touches[i, j] = change.any()
            crosses[i, j] = np.delete(change, token, axis=1).any()
            curved[i, j] = not np.allclose(twice, 2 * change, rtol=1e-3, atol=1e-9)
    after = np.asarray((crosses if crosses.any() else curved).any(axis=0))
    last = int(np.flatnonzero(after)[0]) if after.any() else None
    before = [i for i in range(count) if not after[i]]
    ends = [i for i in before if not touches[i, before].any()]
    return ends, last


def _change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.asarray(np.nan_to_num(after - before))


def _roles(
    context: Callable[..., np.ndarray],
    base: np.ndarray,
    sites: list[np.ndarray],
    names: list[str],
    noise: float,
) -> list[np.ndarray] | None:
    """Return the columns of queries, keys and values, or None.

    The context is linear in the values. A query changes one row of the context only. noise: the
    largest change by rounding.
    """
    start = context(base)

    def effect(columns: np.ndarray, token: Any = slice(None), size: float = 1.0) -> np.ndarray:
        step = np.zeros_like(base)
        random = np.random.default_rng(len(columns))
        step[:, token, columns] = random.normal(size=step[:, token, columns].shape)
        return _change(start, context(base + size * step))

    def is_linear(columns: np.ndarray) -> bool:
        near, far = effect(columns), effect(columns, size=2.0)
        return bool(near.any()) and np.allclose(far, 2 * near, rtol=1e-5, atol=noise)

    def is_local(columns: np.ndarray) -> bool:
        return not np.delete(np.abs(effect(columns, 1)) > noise, 1, axis=1).any()

    values = [site for site in sites if is_linear(site)]
    others = [site for site in sites if not any(site is value for value in values)]
    if not others:
        return None
    if len(others) == 2 * len(values):
        pairs = others
    else:
        found = _fused(np.concatenate(others), values, start.shape[-1], is_linear)
        if found is None:
            return None
        pairs, values = found[:2], found[2:]
    half = len(pairs) // 2
    local = [is_local(site) for site in pairs]
    if sum(local) == half:
        queries = [site for site, here in zip(pairs, local, strict=True) if here]
        keys = [site for site, here in zip(pairs, local, strict=True) if not here]
    else:  # a fault; the names of the parameters say what was meant
        named = [_is_query(names[i]) for i, site in enumerate(sites) for p in pairs if p is site]
        if len(named) == 2 and named == [False, True]:
            pairs = pairs[::-1]
        queries, keys = pairs[::2], pairs[1::2]
    return [np.concatenate(columns) for columns in (queries, keys, values)]


def _is_query(name: str) -> bool:
    return re.search(r"(^|[._])(w_?)?q(uer|_|\.|$)", name.lower()) is not None


def _fused(
    columns: np.ndarray,
    values: list[np.ndarray],
    width: int,
    is_linear: Callable[[np.ndarray], bool],
) -> list[np.ndarray] | None:
    """Split the columns of fused projections into queries, keys and values, or return None.

    width: the number of features of the context. Tries one block of each, and blocks per head.
    """
    if values:  # queries and keys are fused
        of_values = sum(map(len, values))
        sizes = {"q": len(columns) - of_values, "k": of_values}
    else:
        of_keys = (len(columns) - width) // 2
        sizes = {"q": len(columns) - 2 * of_keys, "k": of_keys, "v": of_keys}
    if min(sizes.values()) < 1:
        return None
    for groups in range(1, min(sizes.values()) + 1):
        if any(size % groups for size in sizes.values()):
            continue
        for order in permutations(sizes):
            ends = np.cumsum([sizes[name] // groups for name in order])[:-1]
            blocks = columns.reshape(groups, -1)
            parts = dict(zip(order, np.split(blocks, ends, axis=1), strict=True))
            split = [parts[name].ravel() for name in sizes]
            if values:
                return [*split, np.concatenate(values)]
            if is_linear(split[2]):
                return split
    return None


def weights_of(core: Core, queries: np.ndarray, keys: np.ndarray, **options: Any) -> np.ndarray:
    """Return the weights (batch, features of the context, queries, keys).

    The values are 1 at one token and 0 at the others, one token after the other.
    """
    batch, tokens, _ = keys.shape
    values = np.zeros((batch, tokens, core.widths[2]))
    start = core.run(queries, keys, values, **options)
    columns = []
    for token in range(tokens):
        values[:, token] = 1.0
        columns.append(core.run(queries, keys, values, **options) - start)
        values[:, token] = 0.0
    return np.stack(columns, axis=-1).swapaxes(1, 2)


@dataclass(frozen=True)
class Scale:
    """The measured factor of the dot products, the width of a head, and its largest score."""

    factor: float
    head_dim: int
    cap: float | None


def scale_of(core: Core, tokens: int = 2, **options: Any) -> Scale | str:
    """Measure the factor of the dot products, or return the reason why that is impossible.

    tokens: the number of tokens; only the first and the last one matter.

    The last token has one query feature that is not 0 and keys of 1, the first one has keys of 0.
    The log-odds of their weights are the scaled product. They are compared with a query of 0, so
    that a bias does not matter, and both keys are as if they had no position: rotating a query and
    a key at the same position changes no product.
    """
    width = core.widths[0]
    rows = max(width + 1, tokens + 1)  # different from the number of tokens
    keys = np.zeros((rows, tokens, core.widths[1]))
    keys[:, -1] = 1.0

    def odds(size: float) -> np.ndarray:
        queries = np.zeros((rows, tokens, width))
        queries[np.arange(width), -1, np.arange(width)] = size
        weights = weights_of(core, queries, keys, **options)[:, :, -1]
        with np.errstate(all="ignore"):
            logs = np.log(weights[..., -1] / weights[..., 0])
        return np.asarray((logs - logs[-1])[:width])

    near, far, other = odds(0.05), odds(0.1), odds(-0.05)
    if not np.isfinite(near).all():
        return "the weights of two tokens do not show it"
    seen = np.abs(near) > 1e-5
    counts = seen.sum(axis=1)
    if not seen.any() or counts.min() != counts.max():
        return "the weights of two tokens do not show it"
    slopes = near[seen] / 0.05
    is_linear = np.allclose(far, 2 * near, rtol=1e-3) and np.allclose(other, -near, rtol=1e-3)
    if not is_linear:
        return "queries or keys are normalized, or no product of queries and keys makes the scores"
    if np.ptp(slopes) > 1e-3 * np.abs(slopes).max():
        return "it is not the same for all features"
    of_first = int((seen == seen[0]).all(axis=1).sum())  # features of one head
    with np.errstate(all="ignore"):
        largest = odds(1e9)[seen]
    is_capped = np.isfinite(largest).all() and np.ptp(largest) < 1e-6 * np.abs(largest).max()
    return Scale(float(np.median(slopes)), of_first, float(largest[0]) if is_capped else None)
