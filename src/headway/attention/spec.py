"""`Spec`: all options of attention; a kernel gets a Spec together with its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float, Int

from headway.attention.arrays import Array
from headway.attention.normalizers import Normalizer, softmax
from headway.attention.scores import Score, dot

if TYPE_CHECKING:
    from headway.attention.masks import Mask  # imports this module

Seed = int | Array | Sequence[int | Array]  # one number or several, such as (seed, step, layer)
Offset = int | Int[Array, "..."] | None


class Spec(NamedTuple):
    """The options of attention: pure data, the same for NumPy, PyTorch and JAX.

    mask: which key each query may attend to; None for every key.
    bias: numbers (..., heads, Tq, Tk), broadcast from the right and added to the scaled scores;
        -inf masks a cell.
    scale: the factor of the scores; None for 1 / sqrt(d_k).
    softcap: a number c that limits the scores to c * tanh(scores / c), before the mask (Gemma 2).
    normalizer: the function from scores to weights, see `normalizers`.
    score: the function from queries and keys to scores, see `scores`.
    sink_logits: one number per head (heads,), a score without a key and a value that takes part in
        the normalization, so that the weights of a row sum to less than 1 (gpt-oss; the idea:
        Xiao et al. 2024, StreamingLLM).
    dropout: the probability that a weight is dropped, for training. seed: the seed of dropout.
    offset: the position of the first query, one int or one per batch row; None for Tk - Tq, which
        aligns the last query with the last key.
    batch_offset: the index of the first batch row, so that a slice of a larger batch drops the
        same weights as the complete batch.
    """

    mask: Mask | None = None
    bias: Float[Array, "..."] | None = None
    scale: float | None = None
    softcap: float | None = None
    normalizer: Normalizer = softmax
    score: Score = dot
    sink_logits: Float[Array, " heads"] | None = None
    dropout: float = 0.0
    seed: Seed | None = None
    offset: Offset = None
    batch_offset: int | Int[Array, ""] = 0


class Unsupported(ValueError):  # noqa: N818 - a name without "Error"
    """Raised if a kernel does not support a call; the message gives the reason."""


DEFAULT = Spec()


def used(spec: Spec) -> list[str]:
    """The names of the options that differ from their default, except seed."""
    return [
        name
        for name, value, default in zip(Spec._fields, spec, DEFAULT, strict=True)
        if value is not default and name != "seed" and not _is_equal(value, default)
    ]


def _is_equal(value: object, default: object) -> bool:
    """Whether two numbers are equal; an array is never equal to a default."""
    return isinstance(value, int | float) and value == default


def fold(spec: Spec, *numbers: int | Array) -> Spec:
    """Append numbers to the seed of a Spec, so that each part of a model has a different seed.

    A Spec without a seed is returned unchanged.
    """
    if spec.seed is None:
        return spec
    return spec._replace(seed=fold_seed(spec.seed, *numbers))


def fold_seed(seed: Seed, *numbers: int | Array) -> tuple[int | Array, ...]:
    """Append numbers to a seed."""
    return (*(seed if isinstance(seed, Sequence) else (seed,)), *numbers)
