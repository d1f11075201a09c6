"""What the grader says about an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

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

    def as_json(self) -> dict[str, Any]:
        """Convert to plain types. In matrices, NaN and infinities become strings."""
        plain = asdict(self)
        if self.example is not None:
            example = self.example
            plain["example"] |= {
                "inputs": {name: _plain(array) for name, array in example.inputs.items()},
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
                inputs={name: _array(values) for name, values in example["inputs"].items()},
                yours=None if example["yours"] is None else _array(example["yours"]),
                right=_array(example["right"]),
                wrong=None if example["wrong"] is None else tuple(example["wrong"]),
                what=example["what"],
            )
        return cls(**{**plain, "example": example})


def _plain(array: np.ndarray) -> Any:
    if array.dtype.kind != "f":
        return array.tolist()
    rounded = np.round(array.astype(float), 6)  # float32 has no more digits
    return np.where(np.isfinite(rounded), rounded.astype(object), rounded.astype(str)).tolist()


def _array(values: Any) -> np.ndarray:
    array = np.array(values)
    return array if array.dtype.kind in "bi" else np.array(values, dtype=float)
