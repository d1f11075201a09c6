"""Exercise 3: softmax(scores)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headway.learn.answer import Answer
from headway.learn.graders import faults
from headway.learn.graders.compare import Array, compare


@dataclass(frozen=True)
class Softmax:
    """The formula."""

    softmax: Callable[[Array], Array] = faults.softmax

    def __call__(self, scores: Array) -> Array:
        return self.softmax(scores)


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    random = np.random.default_rng(3)
    cases = [
        {"scores": random.normal(size=shape).round(1)} for shape in ((2, 2), (2, 3), (4, 3), (5, 5))
    ]
    compare(
        [lambda inputs, shape: answer.call(*inputs.values())],
        cases,
        [Softmax()],
        faults.softmax_faults(),
        what="weights",
    )
