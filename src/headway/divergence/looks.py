"""What the difference of two values of a step looks like."""

from __future__ import annotations

import torch
from torch import Tensor

from headway.divergence.measure import MISSING, NEAR, as_masked, difference


def describe(a: Tensor, b: Tensor, limit: float) -> str:
    """Describe how `b` differs from `a`, (..., tokens, features), in a few words.

    limit: the largest relative difference of equal values.
    """
    if a.shape != b.shape:
        return f"its shape is {tuple(b.shape)} instead of {tuple(a.shape)}"
    a, b = a.double(), b.double()
    is_missing = (a == MISSING) | (b == MISSING)
    a, b = a.masked_fill(is_missing, 0.0), b.masked_fill(is_missing, 0.0)
    a, b = as_masked(a, b)
    hidden = a == -torch.inf, b == -torch.inf
    if not torch.equal(*hidden):
        more, less = (hidden[1] & ~hidden[0]).sum(), (hidden[0] & ~hidden[1]).sum()
        return f"the mask hides {int(more):,} other cells, and {int(less):,} cells too few"
    a, b = (x.masked_fill(hidden[0], 0.0) for x in (a, b))
    if bool(b.isnan().any()) and not bool(a.isnan().any()):
        return f"{int(b.isnan().sum()):,} cells are NaN"
    if not float(b.abs().max()):
        return "all numbers are 0"
    factor = float((a * b).sum() / (a * a).sum()) if float(a.norm()) else 0.0
    if factor and difference(a * factor, b) <= NEAR * limit:
        return f"all numbers are {factor:.4g} times as large"
    if (row := _factors(a, b, limit)) is not None:
        return (
            f"the numbers of each token have another factor, {row[0]:.4g} to {row[1]:.4g}, as with "
            "another eps in a norm"
        )
    change = b - a
    if (
        len(a) > 1
        and a.ndim == 3
        and difference(change[:1].expand_as(change), change) <= NEAR * limit
    ):
        return "the difference is the same in each text, as with other position embeddings"
    if a.ndim >= 2 and a.shape[-2] > 1:
        if difference(a[..., :-1, :], b[..., 1:, :]) <= NEAR * limit:
            return "shifted by one position: each token has the value of the one before it"
        if difference(a[..., 1:, :], b[..., :-1, :]) <= NEAR * limit:
            return "shifted by one position: each token has the value of the one after it"
    if a.ndim >= 3 and difference(_sorted_heads(a), _sorted_heads(b)) <= NEAR * limit:
        return "the heads are in another order"
    if difference(a.sort(-1).values, b.sort(-1).values) <= NEAR * limit:
        return "the features of each token are in another order"
    if difference(a.flatten().sort().values, b.flatten().sort().values) <= NEAR * limit:
        return "the same numbers in another order, such as after a transpose"
    if a.shape[-1] > 1 and difference(a.norm(dim=-1), b.norm(dim=-1)) <= NEAR * limit:
        return "only the directions differ, as with other angles or pairs of rotary positions"
    change = change.abs()
    if a.ndim >= 2:
        tokens = change.amax([axis for axis in range(a.ndim) if axis != a.ndim - 2])
        right = tokens <= NEAR * limit * a.abs().max()
        if 0 < int(right.sum()) < len(right):
            if right.sum() <= 2 < len(right) / 2:
                agree = " and ".join(str(int(index)) for index in right.nonzero())
                return f"all positions differ except {agree}"
            wrong = [index for index, is_right in enumerate(right.tolist()) if not is_right]
            shown = ", ".join(map(str, wrong[:5])) + ", …" * (len(wrong) > 5)
            return f"only some positions differ: {shown}"
    centred = [x - x.mean() for x in (a, b)]
    size = float(centred[0].norm() * centred[1].norm())
    similarity = float((centred[0] * centred[1]).sum()) / size if size else 0.0
    if abs(similarity) < 0.1:
        return f"the numbers are not correlated ({similarity:.2f}), as with weights that differ"
    return f"the correlation of the numbers is {similarity:.2f}"


def _factors(a: Tensor, b: Tensor, limit: float) -> tuple[float, float] | None:
    """The least and the largest factor of a token, if the numbers of each one have a factor."""
    if a.ndim < 2 or a.shape[-1] < 2:
        return None
    factors = (a * b).sum(-1, keepdim=True) / (a * a).sum(-1, keepdim=True).clamp(min=1e-300)
    if difference(a * factors, b) > NEAR * limit:
        return None
    low, high = factors.aminmax()
    return float(low), float(high)


def _sorted_heads(x: Tensor) -> Tensor:
    """The heads in the order of their sums."""
    order = x.sum((-1, -2), keepdim=True).argsort(-3)
    return x.gather(-3, order.expand(x.shape))
