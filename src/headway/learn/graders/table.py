"""The graders by the name of their exercise."""

from collections.abc import Callable

from headway.learn.answer import Answer
from headway.learn.graders import softmax

GRADERS: dict[str, Callable[[Answer], None]] = {"softmax": softmax.grade}
