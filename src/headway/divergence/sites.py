"""Where a step of one model is in another one, and which steps are wrong there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from headway.divergence.matching import Layout
from headway.divergence.operations import Place


class Site(NamedTuple):
    """A step of A in B: a result or an argument, and how its axes are arranged there.

    repeats: how often each head is repeated. factor: of the numbers.
    """

    place: Place
    layout: Layout
    repeats: int = 1
    factor: float = 1.0

    def value(self, step: Tensor) -> Tensor:
        """The step as it is at this place."""
        step = step if self.repeats == 1 else step.repeat_interleave(self.repeats, -3)
        return self.layout.apply(step) * self.factor

    @property
    def number(self) -> int:
        """The number of the operation."""
        return self.place if isinstance(self.place, int) else self.place[0]


@dataclass
class WrongStep:
    """A step that is wrong in B, although everything that it was computed from is right.

    name: of the step. sites: the values that were replaced to prove it. in_all_layers: whether the
    same was replaced in every layer. place, value: where B computes it, and its numbers in the
    layout of `right`, those of A. note: what else is known about it.
    """

    name: str
    sites: dict[str, Site]
    in_all_layers: bool = False
    place: str = ""
    note: str = ""
    value: Tensor | None = None  # of B, in the layout of the step
    right: Tensor | None = None


class Trial(NamedTuple):
    """Steps that were replaced, and the position of the last step that became right."""

    name: str
    sites: dict[str, Site]
    reach: int
