"""How much two values of a step differ, and how much of it rounding explains."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Limits = Mapping[str, float]  # of the difference of each step

MARGIN = 8.0  # times the measured rounding; two right programs differ by about twice of it
MISSING = torch.finfo(torch.float64).max  # a cell that a run did not compute
NEAR = 4.0  # times a limit: for values that are compared after they were scaled or sorted
LOWEST = -1e4  # scores below this are treated as -inf, such as -1e9 in a mask of numbers


def difference(a: Tensor, b: Tensor, least: float = 0.0) -> float:
    """Return the largest difference of two values, relative to the largest number of `a`.

    least: what it is relative to at least.
    Cells in which both are NaN, or both -inf, are equal; if only one of them is, the difference is
    inf. A cell that one of them has not computed is not compared.
    """
    a, b = a.double(), b.double()
    if is_ordinary(a) and is_ordinary(b):
        return _ratio(float((a - b).abs().max()), max(float(a.abs().max()), least))
    a, b = as_masked(a, b)
    is_missing = (a == MISSING) | (b == MISSING)
    is_same = (a == b) | (a.isnan() & b.isnan())
    change = torch.where(is_same | is_missing, 0.0, a - b).abs()
    if not bool(torch.isfinite(change).all()):
        return math.inf
    finite = torch.where(torch.isfinite(a) & ~is_missing, a, 0.0)
    largest = float(finite.abs().max()) if a.numel() else 0.0
    most = float(change.max()) if a.numel() else 0.0
    return _ratio(most, max(largest, least))


def _ratio(most: float, largest: float) -> float:
    return most / largest if largest else math.inf if most else 0.0


def is_ordinary(x: Tensor) -> bool:
    """Whether a tensor has numbers, all of which can be compared as they are."""
    if not x.numel():
        return False
    low, high = x.aminmax()
    return float(low) > LOWEST and float(high) < -LOWEST  # False if there is NaN


def as_masked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with -inf for very low numbers, if one of them has -inf: they are masked scores."""
    if not bool((a == -math.inf).any() or (b == -math.inf).any()):
        return a, b
    return torch.where(a <= LOWEST, -math.inf, a), torch.where(b <= LOWEST, -math.inf, b)


def limit(rounding: float, dtype: torch.dtype) -> float:
    """Return the largest difference that rounding explains.

    rounding: the difference between one model in this dtype and in a higher precision.
    """
    return MARGIN * rounding + 4 * torch.finfo(dtype).eps
