"""What the grader says about an answer."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """The smallest input that shows a fault.

    inputs: the arguments by name. yours, right: the result of the answer and the right one, with
    the same shape (or `yours` is None if there is no such array). wrong: the index of the first
    wrong cell, or None. what: the name of the result, such as "weights".
    """

    inputs: dict[str, np.ndarray]
    yours: np.ndarray | None
    right: np.ndarray
    wrong: tuple[int, ...] | None = None
    what: str = "result"


class Wrong(Exception):  # noqa: N818 - as `Refused`: what it says about an answer, no error of Headway
    """Raised by a grader for a wrong answer.

    fault: the name of the mistake, such as "softmax-axis". message: what is wrong and what to do,
    in one or two sentences. look: a regular expression for the line of the answer to look at.
    """

    def __init__(
        self, fault: str, message: str, *, look: str = "", example: Example | None = None
    ) -> None:
        super().__init__(message)
        self.fault, self.message, self.look, self.example = fault, message, look, example


@dataclass(frozen=True)
class Grade:
    """The result of grading one file.

    fault: the name of the mistake; None if passed. line, code: the line to look at, if one is
    known. printed: what the answer printed, shortened.
    """

    passed: bool
    fault: str | None
    message: str
    line: int | None = None
    code: str = ""
    example: Example | None = None
    printed: str = ""
