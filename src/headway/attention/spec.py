"""Every option of attention, named once: a `Spec` is what a kernel gets beside its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float, Int

from headway.attention.arrays import Array
from headway.attention.normalizers import Normalizer, softmax
from headway.attention.scores import Score, dot

if TYPE_CHECKING:
    from headway.attention.masks import Mask  # which is asked by positions, and so needs a Spec

Seed = int | Array | Sequence[int | Array]  # one number or several, such as (seed, step, layer)
Offset = int | Int[Array, "..."] | None


class Spec(NamedTuple):
    """How queries attend to keys; pure data, the same for NumPy, PyTorch and JAX.

    mask: which key each query may attend to; None for every key.
    bias: (..., heads, Tq, Tk), broadcast from the right, added to the scaled scores; -inf forbids.
    scale: of the scores; None for 1 / sqrt(d_k).
    softcap: c * tanh(scores / c), before the mask (Gemma 2).
    normalizer: from scores to weights, see `normalizers`.
    score: from queries and keys to scores, see `scores`.
    dropout: the probability that a weight is dropped; only while training. seed: of the dropout.
    offset: the position of the first query, one int or one per batch row; None for Tk - Tq, so
        that the last query meets the last key.
    batch_offset: the index of the first batch row. A slice of a larger batch then drops the same
        weights as the whole batch does.
    """

    mask: Mask | None = None
    bias: Float[Array, "..."] | None = None
    scale: float | None = None
    softcap: float | None = None
    normalizer: Normalizer = softmax
    score: Score = dot
    dropout: float = 0.0
    seed: Seed | None = None
    offset: Offset = None
    batch_offset: int | Int[Array, ""] = 0


class Unsupported(ValueError):  # noqa: N818 - the name says it
    """A kernel does not support a call; the message says why."""


DEFAULT = Spec()


def used(spec: Spec) -> list[str]:
    """The options that are not left at their default. (A seed alone does nothing.)"""
    return [
        name
        for name, value, default in zip(Spec._fields, spec, DEFAULT, strict=True)
        if value is not default and name != "seed" and not _is_equal(value, default)
    ]


def _is_equal(value: object, default: object) -> bool:
    """Whether two numbers are equal; an array is never equal to a default."""
    return isinstance(value, int | float) and value == default


def fold(spec: Spec, *numbers: int | Array) -> Spec:
    """The Spec for a part of a model: its seed with more numbers. Without a seed, unchanged."""
    if spec.seed is None:
        return spec
    return spec._replace(seed=fold_seed(spec.seed, *numbers))


def fold_seed(seed: Seed, *numbers: int | Array) -> tuple[int | Array, ...]:
    """A seed with more numbers."""
    return (*(seed if isinstance(seed, Sequence) else (seed,)), *numbers)
