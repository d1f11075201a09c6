"""Right or wrong: outputs and gradients against the plain mechanism in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from headway.attention.dispatch import attend
from headway.attention.heads import merge, split
from headway.attention.projections import output, project
from headway.bench.settings import DTYPES, SEED, Setting

Attend = Callable[..., Tensor]

_CELLS = 2**24  # of the scores that the reference holds at a time: 128 MB in float64


class Inputs(NamedTuple):
    """What every implementation of a setting gets.

    leaves: without projections queries, keys and values (batch, heads, tokens, head_dim); with
    them x (batch, tokens, width), W_query, W_key, W_value and W_output. upstream: the gradient of
    the output, shaped as it is.
    """

    leaves: tuple[Tensor, ...]
    upstream: Tensor

    def wanting(self, gradients: bool) -> Inputs:
        """The same, with leaves that do or do not want gradients."""
        return self._replace(leaves=leaves(self.leaves, gradients))


def leaves(tensors: Sequence[Tensor], gradients: bool) -> tuple[Tensor, ...]:
    """The same values, at the beginning of a graph."""
    return tuple(each.detach().requires_grad_(gradients) for each in tensors)


def inputs(setting: Setting) -> Inputs:
    """Numbers from the standard normal distribution (matrices: divided by the root of d_in)."""
    random = torch.Generator().manual_seed(SEED)
    dtype = getattr(torch, setting.dtype)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=random) * scale).to(setting.device, dtype)

    batch, tokens, width, kv_width = setting.batch, setting.tokens, setting.width, setting.kv_width
    if setting.projections:
        scale = width**-0.5
        matrices = (normal(width, each, scale=scale) for each in (width, kv_width, kv_width, width))
        made = Inputs((normal(batch, tokens, width), *matrices), normal(batch, tokens, width))
    else:
        queries, upstream = (
            normal(batch, setting.heads, tokens, setting.head_dim) for _ in range(2)
        )
        keys, values = (normal(batch, setting.kv_heads, tokens, setting.head_dim) for _ in range(2))
        made = Inputs((queries, keys, values), upstream)
    return made.wanting(setting.backward)


def size(setting: Setting) -> int:
    """Bytes of the inputs, of as many results, and of the first batch row of both in float64."""
    narrow, wide = (setting.batch * setting.tokens * w for w in (setting.kv_width, setting.width))
    weights = 2 * setting.width * (setting.width + setting.kv_width)
    numbers = 2 * wide + (weights if setting.projections else 2 * narrow)
    return 2 * numbers * DTYPES[setting.dtype] + 2 * 8 * numbers // setting.batch


def layer(setting: Setting, attend: Attend) -> Callable[..., Tensor]:
    """The multi-head layer around a way to attend: f(x, W_query, W_key, W_value, W_output)."""

    def apply(
        x: Tensor, W_query: Tensor, W_key: Tensor, W_value: Tensor, W_output: Tensor
    ) -> Tensor:
        queries, keys, values = project(x, W_query, W_key, W_value)
        heads = split(queries, setting.heads)
        kv = split(keys, setting.kv_heads), split(values, setting.kv_heads)
        return output(merge(attend(heads, *kv)), W_output)

    return apply


def first_row(results: Sequence[Tensor], batched: int) -> list[Tensor]:
    """Of an output and gradients those of the first batch row: the first `batched` have one."""
    return [each[:1] if place < batched else each for place, each in enumerate(results)]


def batched(setting: Setting) -> int:
    """How many of the leaves have a batch axis, the output's not counted."""
    return 1 if setting.projections else 3


def only_first(upstream: Tensor) -> Tensor:
    """The gradient of the output of the first batch row alone."""
    alone = torch.zeros_like(upstream)
    alone[:1] = upstream[:1]
    return alone


class Exact(NamedTuple):
    """What is right: the first batch row's output and gradients, float64; and how far the plain
    mechanism in the setting's dtype is from it, the largest difference in each."""

    right: list[Tensor]
    usual: list[float]
    eps: float

    @property
    def plain_error(self) -> float:
        """The plain mechanism's, as `error` tells it."""
        pairs = zip(self.usual, self.right, strict=True)
        return max(_share(usual, _largest(right)) for usual, right in pairs)

    def error(self, found: Sequence[Tensor]) -> float:
        """The largest difference from what is right, as a share of its largest number."""
        pairs = zip(differences(found, self.right), self.right, strict=True)
        return max(_share(difference, _largest(right)) for difference, right in pairs)

    def excess(self, found: Sequence[Tensor]) -> float:
        """The largest difference by what is allowed: 2 * the usual + 4 * eps * the largest number.

        Above 1 it is wrong.
        """
        triples = zip(differences(found, self.right), self.usual, self.right, strict=True)
        return max(
            _share(difference, 2 * usual + 4 * self.eps * _largest(right))
            for difference, usual, right in triples
        )


def _share(part: float, whole: float) -> float:
    """0 of nothing: where a query sees one key, all gradients of its scores are exactly 0."""
    if part == 0:
        return 0.0
    return part / whole if whole else math.inf


def exact(setting: Setting) -> Exact:
    """The truth about a setting's first batch row; kept, for settings that differ in nothing here.

    In float64 by the plain mechanism, a block of queries at a time, which bounds the memory.
    """
    return _exact(replace(setting, compiled=False))


@lru_cache(maxsize=2)
def _exact(setting: Setting) -> Exact:
    low = inputs(setting)
    by_block = partial(_by_block, options=setting.options)
    function = layer(setting, by_block) if setting.projections else by_block
    tensors, upstream = first_row(low.leaves, batched(setting)), low.upstream[:1]
    right, usual = (
        results(function, leaves([each.to(dtype) for each in tensors], setting.backward), upstream)
        for dtype in (torch.float64, low.upstream.dtype)
    )
    return Exact(right, differences(usual, right), torch.finfo(low.upstream.dtype).eps)


def results(
    function: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor
) -> list[Tensor]:
    """The output, and the gradient of every leaf if they want one."""
    if not leaves[0].requires_grad:
        with torch.no_grad():
            return [function(*leaves)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def differences(found: Sequence[Tensor], right: Sequence[Tensor]) -> list[float]:
    """The largest one of each pair; infinite where something is not finite."""
    pairs = zip(found, right, strict=True)
    each = (float((one.double() - other.double()).abs().max()) for one, other in pairs)
    return [d if d == d else float("inf") for d in each]


def _largest(right: Tensor) -> float:
    return float(right.abs().max())


def _by_block(queries: Tensor, keys: Tensor, values: Tensor, *, options: dict[str, Any]) -> Tensor:
    """The plain mechanism on some queries at a time; going back, each block is computed anew."""
    *_, heads, tokens, _ = queries.shape
    rows = max(1, _CELLS // (heads * tokens))
    causal = options["causal"] or options["window"] is not None

    def block(start: int) -> Tensor:
        end = min(start + rows, tokens)
        seen = end if causal else tokens

        def some(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return attend(queries, keys, values, kernel="plain", offset=start, **options)

        parts = queries[..., start:end, :], keys[..., :seen, :], values[..., :seen, :]
        made: Tensor = checkpoint(some, *parts, use_reentrant=False, preserve_rng_state=False)
        return made

    return torch.cat([block(start) for start in range(0, tokens, rows)], dim=-2)
