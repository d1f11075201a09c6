"""Find a step of one model among the operations of another, by its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from headway.divergence.measure import difference, is_ordinary


class Layout(NamedTuple):
    """How the axes of a step are arranged in another tensor: permuted, then merged or split."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]  # of the other tensor

    def apply(self, step: Tensor) -> Tensor:
        """Return the step in this layout."""
        return step.permute(self.axes).reshape(self.shape)

    def undo(self, other: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the other tensor in the layout of a step of this shape."""
        permuted = other.reshape([shape[axis] for axis in self.axes])
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return permuted.permute(back)


@cache
def layouts(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[Layout, ...]:
    """All arrangements of the axes of a step that have the shape of another tensor.

    The usual ones are first: the order of the axes is kept, or two of them are exchanged. Two axes
    of the same size are not exchanged, because a transposed matrix of scores is another one.
    """
    if math.prod(shape) != math.prod(other):
        return ()
    wide = [axis for axis, size in enumerate(shape) if size != 1]
    narrow = [axis for axis, size in enumerate(shape) if size == 1]
    output, others = [], [size for size in other if size != 1]
    for order in sorted(permutations(wide), key=_moved):
        sizes = [shape[axis] for axis in order]
        if _keeps_equal_sizes_in_order(order, shape) and _is_grouping(sizes, others):
            output.append(Layout((*narrow, *order), other))
    usual = Layout((*narrow, *wide), other)
    return tuple(output) if usual in output else (*output, usual)


def _moved(order: tuple[int, ...]) -> int:
    return sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])


def _keeps_equal_sizes_in_order(order: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(a < b or shape[a] != shape[b] for i, a in enumerate(order) for b in order[i + 1 :])


def _is_grouping(sizes: list[int], other: list[int]) -> bool:
    """Whether each run of sizes is merged into one of the others, or one is split into a run."""
    sizes, other = [*sizes], [*other]
    while sizes and other:
        one, two = [sizes.pop(0)], [other.pop(0)]
        while math.prod(one) != math.prod(two):
            shorter, rest = (one, sizes) if math.prod(one) < math.prod(two) else (two, other)
            if not rest:
                return False
            shorter.append(rest.pop(0))
        if len(one) > 1 and len(two) > 1:
            return False
    return not sizes and not other


def correlation(step: Tensor, other: Tensor) -> tuple[float, Layout] | None:
    """The layout in which the two are correlated best, with the absolute correlation."""
    best = None
    centred = _centred(other)
    for layout in layouts(tuple(step.shape), tuple(other.shape)):
        size = float((_centred(layout.apply(step)) * centred).sum().abs())
        if best is None or size > best[0] + 0.25:  # the usual layout, unless another is clear
            best = size, layout
    return best


def _centred(x: Tensor) -> Tensor:
    x = torch.nan_to_num(x.double(), neginf=-10.0, posinf=10.0).clamp(-1e4, 1e4)
    x = x - x.mean()
    centred: Tensor = x / x.norm().clamp(min=1e-300)
    return centred


class Summary(NamedTuple):
    """Numbers that do not depend on the layout of a tensor: equal tensors have equal ones."""

    cells: int
    size: float
    total: float
    low: float
    high: float

    @classmethod
    def of(cls, x: Tensor) -> Summary:
        """Summarize a tensor."""
        x = x.double()
        if not is_ordinary(x):
            x = torch.where(torch.isfinite(x) & (x.abs() < 1e4), x, 0.0)
        low, high = x.aminmax() if x.numel() else (x.sum(), x.sum())
        return cls(x.numel(), float(x.norm()), float(x.sum()), float(low), float(high))

    def may_equal(self, other: Summary, limit: float) -> bool:
        """Whether the tensors can be equal up to this relative difference."""
        if self.cells != other.cells:
            return False
        # Each cell differs by at most limit * largest, and the largest is at most the norm.
        slack = (limit + 1e-12) * self.size
        return (
            abs(self.low - other.low) <= slack
            and abs(self.high - other.high) <= slack
            and abs(self.size - other.size) <= slack * math.sqrt(self.cells)
            and abs(self.total - other.total) <= slack * self.cells
        )


def equal(
    step: Tensor, summary: Summary, others: Sequence[tuple[int, Tensor, Summary]], limit: float
) -> Iterator[tuple[int, Layout]]:
    """The tensors that equal a step up to this difference, in some layout, by their numbers."""
    for number, other, their in others:
        if summary.may_equal(their, limit):
            for layout in layouts(tuple(step.shape), tuple(other.shape)):
                if difference(layout.apply(step), other) <= limit:
                    yield number, layout
                    break
