"""The report of a comparison: steps, causes, and what could not be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from headway.explore.heads import finite


@dataclass(frozen=True)
class Step:
    """A step of the first model, or the loss, a gradient or an update of its training.

    state: same, different, or not found in the second model.

    difference: the largest one, relative to the largest number; None if it is not known. limit: the
    largest difference that rounding explains.
    """

    name: str
    state: str
    difference: float | None
    limit: float


@dataclass(frozen=True)
class Cause:
    """A step that the second model computes differently from the same inputs.

    place: where the second model computes it, if that is not known from the name. looks: what the
    difference looks like; empty if that is not known. in_all_layers: whether it is the same in
    every layer. is_replaced: whether the step of the first model was put in its place.
    """

    name: str
    place: str
    looks: str
    in_all_layers: bool
    is_replaced: bool = True


@dataclass(frozen=True)
class Report:
    """The result of a comparison.

    causes: in the order in which they were found. is_proved: whether the logits agree if the steps
    of all causes are replaced by those of the first model; with the gradients, whether also these
    agree with the loss of the first model. notes: what could not be compared, and why. values: of
    each step that both models have, in the layout of the first one.
    """

    titles: tuple[str, str]
    dtype: str
    steps: tuple[Step, ...]
    causes: tuple[Cause, ...]
    is_proved: bool
    notes: tuple[str, ...] = ()
    values: Mapping[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def is_same(self) -> bool:
        """Whether the two models compute the same logits, up to rounding."""
        return not self.causes and self.is_proved

    @property
    def first(self) -> str | None:
        """The name of the first wrong step, or None."""
        return self.causes[0].name if self.causes else None

    @property
    def cause(self) -> Cause | None:
        """The first cause, or None."""
        return self.causes[0] if self.causes else None

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON, which has no infinity: such a difference is None."""
        shown = {name: value for name, value in vars(self).items() if name != "values"}
        shown |= {name: [asdict(part) for part in shown[name]] for name in ("steps", "causes")}
        for step in shown["steps"]:
            known = {name: step[name] for name in ("difference", "limit") if step[name] is not None}
            step.update({name: finite(number) for name, number in known.items()})
        return {**shown, "first": self.first, "is_same": self.is_same}
