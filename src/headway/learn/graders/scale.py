"""Exercise 5: attention(queries, keys, values) with the scale."""

from __future__ import annotations

from functools import partial

from headway.learn.answer import Answer
from headway.learn.graders import attention
from headway.learn.graders.attention_faults import of_roles, of_scale
from headway.learn.graders.calls import Watched
from headway.learn.graders.compare import Array, Fault, compare, fault
from headway.learn.graders.faults import of_attention, of_normalization, of_results, without


def cases() -> list[dict[str, Array]]:
    """Return inputs, the smallest first."""
    return attention.cases((3, 2, 2), (4, 3, 2), (6, 3, 4), (2, 8, 3), (4, 6, 3))


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    causal = "There is a causal mask: later tokens are hidden. That is the next chapter; leave it "
    causal += "out here."
    return [
        *without(of_scale(), *attention.OF_SEVERAL_HEADS),
        *without(of_normalization(), "sign"),
        *of_roles(),
        *of_attention(),
        *without(of_results("context"), "divided-by-rows"),
        fault("mask-added", causal, "tri|mask|inf", structure=lambda call: call.distance() >= 0),
    ]


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched.of(answer)
    compare(
        [*attention.views(watched.answer)],
        cases(),
        [attention.Attention()],
        faults(),
        more=attention.cases((5, 5, 5)),  # where wrong shapes fit, too
        what="context",
        measured=partial(attention.measured, causal=False),
        hint=partial(attention.hint, causal=False),
    )
    watched.check()
