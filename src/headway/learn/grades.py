"""What the grader says about an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Example:
    """The smallest input that shows a fault.

    inputs: the arguments by name: arrays and plain values. yours, right: the result of the answer
    and the right one, with the same shape (or `yours` is None if there is no such array). wrong:
    the index of the first wrong cell, or None. what: the name of the result, such as "weights".
    """

    inputs: dict[str, Any]
    yours: np.ndarray | None
    right: np.ndarray
    wrong: tuple[int, ...] | None = None
    what: str = "result"


class Wrong(Exception):  # noqa: N818 - as `Refused`: what it says about an answer, no error of Headway
    """Raised by a grader for a wrong answer.

    fault: the name of the mistake, such as "softmax-axis". message: what is wrong and what to do,
    in one or two sentences. look: a regular expression for the line of the answer to look at, or
    several, one a line: the first one that matches counts.
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

    def as_json(self) -> dict[str, Any]:
        """Convert to plain types. In matrices, NaN and infinities become strings."""
        plain = asdict(self)
        if self.example is not None:
            example = self.example
            plain["example"] |= {
                "inputs": {name: _plain(value) for name, value in example.inputs.items()},
                "yours": None if example.yours is None else _plain(example.yours),
                "right": _plain(example.right),
            }
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Grade:
        """Convert the result of `as_json` back."""
        example = plain["example"]
        if example is not None:
            example = Example(
                inputs={name: _array(value) for name, value in example["inputs"].items()},
                yours=None if example["yours"] is None else np.asarray(_array(example["yours"])),
                right=np.asarray(_array(example["right"])),
                wrong=None if example["wrong"] is None else tuple(example["wrong"]),
                what=example["what"],
            )
        return cls(**{**plain, "example": example})


def _plain(value: Any) -> Any:
    """Convert arrays to lists, with "NaN" and "Infinity" as JavaScript's `Number` reads them."""
    if isinstance(value, list):
        return [_plain(element) for element in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if not isinstance(value, float):
        return value
    if np.isnan(value):
        return "NaN"
    return round(value, 6) if np.isfinite(value) else f"{'-' * (value < 0)}Infinity"


def _array(values: Any) -> Any:
    if not isinstance(values, list):
        return values
    array = np.array(values)
    return array if array.dtype.kind in "bi" else np.array(values, dtype=float)
