"""`diff`: compare two models step by step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headway.divergence.looks import describe
from headway.divergence.measure import difference, limit
from headway.divergence.search import MOST_CAUSES, Search
from headway.divergence.sides import Module, Named, Steps, opened

BATCH, TOKENS = 2, 23  # of random tokens; not a usual number of heads or features


@dataclass(frozen=True)
class Step:
    """A step of the first model. state: same, different, or not found in the second one.

    difference: the largest one, relative to the largest number; None if it is not known. limit: the
    largest difference that rounding explains.
    """

    name: str
    state: str
    difference: float | None
    limit: float


@dataclass(frozen=True)
class Cause:
    """A step that the second model computes differently from the same inputs.

    place: where the second model computes it, if that is not known from the name. looks: what the
    difference looks like. in_all_layers: whether it is the same in every layer.
    """

    name: str
    place: str
    looks: str
    in_all_layers: bool


@dataclass(frozen=True)
class Report:
    """The result of a comparison.

    causes: in the order in which they were found. is_proved: whether the logits agree if the steps
    of all causes are replaced by those of the first model.
    """

    titles: tuple[str, str]
    dtype: str
    steps: tuple[Step, ...]
    causes: tuple[Cause, ...]
    is_proved: bool

    @property
    def is_same(self) -> bool:
        """Whether the two models compute the same logits, up to rounding."""
        return not self.causes and self.is_proved

    @property
    def first(self) -> str | None:
        """The name of the first wrong step, or None."""
        return self.causes[0].name if self.causes else None

    @property
    def cause(self) -> Cause | None:
        """The first cause, or None."""
        return self.causes[0] if self.causes else None

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {**asdict(self), "first": self.first, "is_same": self.is_same}


def diff(
    a: Any,
    b: Any,
    tokens: Any = None,
    *,
    a_settings: Mapping[str, str] | None = None,
    b_settings: Mapping[str, str] | None = None,
    runs: str = "runs",
) -> Report:
    """Compare two models step by step, and search for the first step that differs.

    a: a run, a Hugging Face folder, or a model of Headway or of transformers; its steps have names.
    b: the same, or any `torch.nn.Module`, or `file.py:function` that returns one; called with
    tokens (batch, tokens) it returns logits. tokens: integers (batch, tokens), or a text; random by
    default.
    a_settings, b_settings: attention (a kernel), dtype, engine.

    The numbers are compared in float64, as far as both sides have it, and a step differs if its
    difference is larger than eight times the measured rounding of float32 (or of the dtype that a
    side sets). Raises ValueError for sides that cannot be compared.
    """
    one, two = opened(a, a_settings, runs), opened(b, b_settings, runs)
    if not isinstance(one, Named):
        raise ValueError(
            f"the steps of {one.title} have no names; give it as the second model, and first a "
            "run, a Hugging Face folder, or a model of transformers"
        )
    if isinstance(tokens, str):
        tokens = _encoded(tokens, (one, two))
    return _compared(one, two, _tokens(tokens, one, two))


def _compared(one: Named, two: Named | Module, tokens: np.ndarray) -> Report:
    """Compare two sides on tokens (batch, tokens)."""
    formats = [one.settings.dtype or "float32", two.settings.dtype or "float32"]
    coarse = max(formats, key=lambda name: torch.finfo(getattr(torch, name)).eps)
    if one.settings.engine != "torch" and (isinstance(two, Module) or two.settings == one.settings):
        raise ValueError("JAX computes in float32 here: remove engine=jax from one side")
    has_64 = one.settings.engine == two.settings.engine == "torch"
    in_torch = one if one.settings.engine == "torch" else two
    exact = in_torch.steps(tokens, "float64") if isinstance(in_torch, Named) else None
    first = one.steps(tokens, "float64" if has_64 else formats[0])
    if bool(first["logits"].isnan().any()):
        raise ValueError(
            f"{one.title} computes NaN, so there is nothing to compare with: its weights are "
            "damaged, or its number format is too narrow"
        )
    rounded = one.steps(tokens, coarse if has_64 else formats[0])
    limits = {
        name: limit(difference((exact or first)[name], value), getattr(torch, coarse))
        for name, value in rounded.items()
    }
    if isinstance(two, Module):
        return _searched(one, two, tokens, first, limits)
    report = _by_name(one, two, tokens, limits, "float64" if has_64 else None)
    if report.is_same and (one.settings != two.settings) and has_64:
        report = _by_name(one, two, tokens, limits, None)
    return report


def _searched(
    one: Named, two: Module, tokens: np.ndarray, steps: Steps, limits: Mapping[str, float]
) -> Report:
    try:
        search = Search(steps, limits, two.runner(tokens, "float64"))
    except Exception as error:
        raise ValueError(f"{two.title} raised {type(error).__name__}: {error}") from error
    causes = search.all()
    wrong = {cause.name for cause in causes}
    rows = []
    for name in search.names:
        site = search.at_first.get(name)
        if site is not None and name not in wrong:
            value = search.first[site.number].value
            size = difference(site.layout.apply(steps[name]), value)
            rows.append(Step(name, "same", size, limits[name]))
        else:
            state = "different" if name in wrong or causes else "not found"
            rows.append(Step(name, state, None, limits[name]))
    shown = tuple(
        Cause(
            cause.name,
            cause.place,
            describe(cause.right, cause.value, limits[cause.name])
            if cause.value is not None and cause.right is not None
            else "",
            cause.in_all_layers,
        )
        for cause in causes
    )
    return Report((one.title, two.title), "float64", tuple(rows), shown, search.is_healed)


def _by_name(
    one: Named, two: Named, tokens: np.ndarray, limits: Mapping[str, float], dtype: str | None
) -> Report:
    """Compare steps that have the same names. dtype: None for that of each side, with its kernel.

    Kernels have no steps inside of an attention: if one is wrong, its context is.
    """
    formats = [dtype or side.settings.dtype or "float32" for side in (one, two)]
    inside = dtype is not None
    a = one.steps(tokens, formats[0], is_inside=inside)
    replaced: dict[str, Tensor] = {}
    causes: list[Cause] = []
    at_first = b = two.steps(tokens, formats[1], is_inside=inside)
    while len(causes) < MOST_CAUSES:
        name = _first_wrong(a, b, limits, replaced)
        if name is None:
            break
        looks = describe(a[name], b[name], limits[name])
        if b[name].shape != a[name].shape:  # nothing can be replaced
            causes.append(Cause(name, "", looks, False))
            break
        same = {n: x for n, x in a.items() if _kind(n) == _kind(name)}
        everywhere = two.steps(tokens, formats[1], {**replaced, **same}, is_inside=inside)
        single = two.steps(tokens, formats[1], {**replaced, name: a[name]}, is_inside=inside)
        healed = _count(a, everywhere, limits) - _count(a, single, limits)
        in_all = healed > len(same) - 1  # more than the steps that were replaced
        replaced |= same if in_all else {name: a[name]}
        b = everywhere if in_all else single
        causes.append(Cause(name, "", looks, in_all))
    is_proved = _first_wrong({"logits": a["logits"]}, b, limits, {}) is None
    rows = tuple(_row(name, a[name], at_first.get(name), limits[name]) for name in a)
    used = formats[0] if formats[0] == formats[1] else " and ".join(formats)
    return Report((one.title, two.title), used, rows, tuple(causes), is_proved)


def _first_wrong(
    a: Steps, b: Steps, limits: Mapping[str, float], replaced: Mapping[str, Tensor]
) -> str | None:
    for name, value in a.items():
        if name in b and name not in replaced and not _is_same(value, b[name], limits[name]):
            return name
    return None


def _is_same(a: Tensor, b: Tensor, most: float) -> bool:
    return a.shape == b.shape and difference(a, b) <= most


def _count(a: Steps, b: Steps, limits: Mapping[str, float]) -> int:
    return sum(name in b and _is_same(a[name], b[name], limits[name]) for name in a)


def _row(name: str, a: Tensor, b: Tensor | None, most: float) -> Step:
    if b is None:
        return Step(name, "not found", None, most)
    if a.shape != b.shape:
        return Step(name, "different", None, most)
    error = difference(a, b)
    return Step(name, "same" if error <= most else "different", error, most)


def _kind(name: str) -> str:
    return re.sub(r"blocks\.\d+", "blocks.*", name)


def _tokens(tokens: Any, *sides: Named | Module) -> np.ndarray:
    sizes = [side.vocabulary for side in sides if side.vocabulary is not None]
    if len({*sizes}) > 1:
        raise ValueError(f"the models have vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens")
    most = min((side.context for side in sides if side.context is not None), default=TOKENS)
    if tokens is None:
        return np.random.default_rng(0).integers(0, min(sizes), (BATCH, min(TOKENS, most)))
    array = np.atleast_2d(np.asarray(tokens))
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not array.size:
        given = f"{array.dtype} {array.shape}"
        raise ValueError(f"tokens must be integers (batch, tokens) (got {given})")
    contexts = [side.context for side in sides if side.context is not None]
    if contexts and array.shape[1] > min(contexts):
        raise ValueError(
            f"{array.shape[1]} tokens do not fit a context of {min(contexts)}; give fewer"
        )
    if array.min() < 0 or array.max() >= min(sizes):
        raise ValueError(f"tokens must be from 0 to {min(sizes) - 1} (got {array.max()})")
    return array.astype(np.int64)


def _encoded(text: str, sides: Sequence[Named | Module]) -> np.ndarray:
    """The tokens of a text, by the tokenizer of the first side that has one.

    Raises ValueError without a tokenizer or tokens, or if the two give other tokens.
    """
    rows = [(side.title, side.tokenizer.prompt(text)) for side in sides if side.tokenizer]
    if not rows:
        raise ValueError("no side has a tokenizer; omit the text to compare random tokens")
    if len(rows) == 2 and not np.array_equal(rows[0][1], rows[1][1]):
        lengths = f"{len(rows[0][1])} and {len(rows[1][1])}"
        raise ValueError(
            f"the tokenizers of {rows[0][0]} and {rows[1][0]} give other tokens for this text "
            f"({lengths} tokens); omit the text to compare random tokens"
        )
    if not len(rows[0][1]):
        raise ValueError("the text is empty; give one with at least one character")
    return rows[0][1][None]
