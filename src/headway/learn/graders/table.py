"""The graders by the name of their exercise.

A grader raises `Wrong` for a wrong answer. It may return a remark for the learner who passed.
"""

from collections.abc import Callable

from headway.learn.answer import Answer
from headway.learn.graders import batches, fused, softmax

GRADERS: dict[str, Callable[[Answer], str | None]] = {
    "softmax": softmax.grade,
    "fused": fused.grade,
    "batches": batches.grade,
}
