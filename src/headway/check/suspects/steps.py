"""The formula of attention in steps, and attention with one fault each.

A suspect replaces some steps (Vaswani et al. 2017, equation 1). Arrays are (batch, heads, tokens,
head_dim); masks are boolean, True: attend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headway.check.declaration import Declaration

Array = np.ndarray
Step = Callable[..., Any]


@dataclass(frozen=True)
class Rotation:
    """Rotary positions (Su et al. 2021): the angle of pair i is position * base^(-2i/d).

    angles: the pairs that the angles are made for, if they are others. share: the part of the
    features that is rotated. axis: of the tokens.
    """

    positions: Array
    pairs: str = "half"
    base: float = 10000.0
    share: float = 1.0
    angles: str | None = None
    axis: int = -2
    factor: float = 1.0

    def __call__(self, x: Array) -> Array:
        """Rotate x; the last token has the last position."""
        width = int(x.shape[-1] * self.share) // 2 * 2
        count = x.shape[self.axis]
        positions = np.resize(self.positions, max(count, len(self.positions)))[-count:]
        frequency = self.factor * self.base ** (-2 * np.arange(width // 2) / width)
        angles = _spread(positions[:, None] * frequency, self.angles or self.pairs)
        shape = [1] * x.ndim
        shape[self.axis], shape[-1] = angles.shape
        cos, sin = np.cos(angles).reshape(shape), np.sin(angles).reshape(shape)
        turned, rest = x[..., :width], x[..., width:]
        return np.concatenate([turned * cos + _quarter(turned, self.pairs) * sin, rest], axis=-1)


def _spread(angles: Array, pairs: str) -> Array:
    """Give each feature the angle of its pair."""
    return np.tile(angles, 2) if pairs == "half" else np.repeat(angles, 2, axis=-1)


def _quarter(x: Array, pairs: str) -> Array:
    """Rotate pairs of features by 90 degrees."""
    if pairs == "half":
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([-second, first], axis=-1)
    return np.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)


@dataclass(frozen=True)
class Call:
    """What a call asks for.

    shape: the numbers of queries and keys. given: the option `mask`, (batch, 1, 1 or queries,
    keys). scale: the factor of the dot products; None: 1/sqrt(head_dim). bias: added to the
    scores. sinks: for each head, an additional term of the denominator; None: no terms.
    """

    declared: Declaration
    shape: tuple[int, int]
    heads: int
    kv_heads: int
    causal: bool = False
    window: int | None = None
    given: Array | None = None
    softcap: float | None = None
    scale: float | None = None
    rotation: Rotation | None = None
    bias: Any = 0.0
    sinks: Array | None = None

    def structure(self, **changes: Any) -> Array:
        """Return the mask without the option `mask`, or with other options."""
        options = {"causal": self.causal, "window": self.window, **changes}
        return self.declared.allowed(*self.shape, heads=self.heads, **options)

    def distance(self) -> Array:
        """Return the position of the query minus that of the key, (queries, keys)."""
        queries, keys = self.shape
        return np.subtract.outer(np.arange(keys - queries, keys), np.arange(keys))


def split(packed: Array, heads: int) -> Array:
    """Split (batch, tokens, heads * dim) into heads."""
    return packed.reshape((*packed.shape[:2], heads, -1)).swapaxes(1, 2)


def merge(context: Array) -> Array:
    """Undo `split`."""
    return context.swapaxes(1, 2).reshape((context.shape[0], context.shape[2], -1))


def softmax(scores: Array, axis: Any = -1) -> Array:
    """Return the softmax; NaN where all scores are -inf."""
    exponentials = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=axis, keepdims=True))


def hide(scores: Array, allowed: Array) -> Array:
    """Set scores that are not allowed to -inf."""
    return np.where(allowed, scores, -np.inf)


def turn(q: Array, k: Array, v: Array, rotation: Rotation | None) -> tuple[Array, Array, Array]:
    """Rotate queries and keys."""
    return (q, k, v) if rotation is None else (rotation(q), rotation(k), v)


def repeat(x: Array, times: int) -> Array:
    """Repeat each kv head."""
    return x.repeat(times, axis=1)


def scale(q: Array, k: Array, call: Call) -> float:
    """Return the factor of the dot products."""
    return float(call.scale or q.shape[-1] ** -0.5)


def cap(scores: Array, limit: float) -> Array:
    """Cap scores smoothly (Gemma 2)."""
    return np.asarray(limit * np.tanh(scores / limit))


def unchanged(array: Array, allowed: Array) -> Array:
    """Do not apply a mask here."""
    return array


def remove(weights: Array, allowed: Array) -> Array:
    """Set weights that are not allowed to 0."""
    return np.where(allowed, weights, 0.0)


@dataclass(frozen=True)
class Steps:
    """The steps of attention; the right ones by default."""

    split: Step = split
    turn: Step = turn
    exchange: Step = lambda q, k, v: (q, k, v)
    repeat_keys: Step = repeat
    repeat_values: Step = repeat
    scale: Step = scale
    cap: Step = cap
    cap_last: bool = False
    structure: Step = lambda call: call.structure()
    given: Step = lambda call: call.given
    hide_structure: Step = hide
    hide_given: Step = hide
    normalize: Step = softmax
    drop_structure: Step = unchanged
    drop_given: Step = unchanged
    mix: Step = np.matmul
    merge: Step = merge

    def __call__(self, queries: Array, keys: Array, values: Array, call: Call) -> Array:
        """Return the context of packed arrays (batch, tokens, heads * dim)."""
        q = self.split(queries, call.heads)
        k, v = (self.split(array, call.kv_heads) for array in (keys, values))
        q, k, v = self.exchange(*self.turn(q, k, v, call.rotation))
        times = call.heads // call.kv_heads
        k, v = self.repeat_keys(k, times), self.repeat_values(v, times)
        scores = q @ k.swapaxes(-1, -2) * self.scale(q, k, call) + call.bias
        structure, given = self.structure(call), self.given(call)
        if call.softcap is not None and not self.cap_last:
            scores = self.cap(scores, call.softcap)
        scores = self.hide_structure(scores, structure)
        if given is not None:
            scores = self.hide_given(scores, given)
        if call.softcap is not None and self.cap_last:
            scores = self.cap(scores, call.softcap)
        if call.sinks is not None:
            sinks = np.broadcast_to(np.log(call.sinks)[:, None, None], (*scores.shape[:-1], 1))
            scores = np.concatenate([scores, sinks], axis=-1)
        weights = self.normalize(scores)[..., : k.shape[-2]]
        weights = self.drop_structure(weights, structure)
        if given is not None:
            weights = self.drop_given(weights, given)
        return np.asarray(self.merge(self.mix(weights, v)))


RIGHT = Steps()


@dataclass(frozen=True)
class Suspect:
    """A fault and attention with this fault.

    declare: what to declare if it is no fault but intended, else "". look: a regular expression for
    source lines.
    """

    diagnosis: str
    fix: str
    steps: Steps
    look: str
    declare: str = ""


class Suspects(list[Suspect]):
    """Suspects that share a fix and a pattern for source lines."""

    def __init__(self, fix: str, look: str) -> None:
        super().__init__()
        self.fix, self.look = fix, look

    def add(self, diagnosis: str, *, fix: str = "", declare: str = "", **steps: Any) -> None:
        """Add a suspect that replaces some steps."""
        suspect = Suspect(diagnosis, fix or self.fix, replace(RIGHT, **steps), self.look, declare)
        self.append(suspect)
