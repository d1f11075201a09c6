"""Exercise 6: causal_attention(queries, keys, values)."""

from __future__ import annotations

from functools import partial

from headway.learn.answer import Answer
from headway.learn.graders import attention
from headway.learn.graders.attention_faults import of_causal, of_roles, of_scale
from headway.learn.graders.calls import Watched
from headway.learn.graders.compare import Array, Fault, compare
from headway.learn.graders.faults import (
    of_attention,
    of_mask,
    of_normalization,
    of_results,
    without,
)

SIZES = (3, 2, 2), (4, 3, 2), (6, 3, 4), (2, 8, 3)


def cases() -> list[dict[str, Array]]:
    """Return inputs, the smallest first. In the last case some scores are exactly 0."""
    orthogonal = attention.cases((4, 2, 3))[0]
    orthogonal["queries"][2] = 1.0, 0.0
    orthogonal["keys"][0] = 0.0, 1.0
    return [*attention.cases(*SIZES), orthogonal]


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    return [
        *of_causal(),
        *of_mask(),
        *without(of_scale(), *attention.OF_SEVERAL_HEADS),
        *without(of_normalization(), "sign", "min-max"),
        *of_roles(),
        *of_attention(),
        *without(of_results("context"), "divided-by-rows"),
    ]


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched.of(answer)
    compare(
        [*attention.views(watched.answer)],
        cases(),
        [attention.Attention(causal=True)],
        faults(),
        more=attention.cases((5, 5, 5)),  # where wrong shapes fit, too
        what="context",
        measured=partial(attention.measured, causal=True),
        hint=partial(attention.hint, causal=True),
    )
    watched.check()
