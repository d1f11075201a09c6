"""The inputs of a setting, and the expected outputs and gradients: those of the plain formula in
float64."""

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

_CELLS = 2**24  # of the scores that the reference holds at a time: 128 MB in float64


class Inputs(NamedTuple):
    """The inputs of every implementation in a setting.

    leaves: without projections queries, keys and values (batch, heads, tokens, head_dim); with
    them x (batch, tokens, width), W_query, W_key, W_value and W_output. upstream: the gradient of
    the output, with its shape.
    """

    leaves: tuple[Tensor, ...]
    upstream: Tensor


def leaves(tensors: Sequence[Tensor], gradients: bool) -> tuple[Tensor, ...]:
    """Return the same values as leaves of a graph, with or without gradients."""
    return tuple(tensor.detach().requires_grad_(gradients) for tensor in tensors)


def inputs(setting: Setting) -> Inputs:
    """Sample from the standard normal distribution (matrices: divided by the root of d_in)."""
    random = torch.Generator().manual_seed(SEED)
    dtype = getattr(torch, setting.dtype)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=random) * scale).to(setting.device, dtype)

    batch, tokens, width, kv_width = setting.batch, setting.tokens, setting.width, setting.kv_width
    if setting.projections:
        scale = width**-0.5
        matrices = [normal(width, size, scale=scale) for size in (width, kv_width, kv_width, width)]
        tensors = [normal(batch, tokens, width), *matrices]
        upstream = normal(batch, tokens, width)
    else:
        wide, narrow = (
            (batch, heads, tokens, setting.head_dim) for heads in (setting.heads, setting.kv_heads)
        )
        queries, upstream = normal(*wide), normal(*wide)
        tensors = [queries, normal(*narrow), normal(*narrow)]
    return Inputs(leaves(tensors, setting.backward), upstream)


def size(setting: Setting) -> int:
    """Bytes of the inputs and the results, and of the first batch row of both in float64."""
    numbers = setting.numbers
    return 2 * numbers * DTYPES[setting.dtype] + 2 * 8 * numbers // setting.batch


def layer(
    setting: Setting, attention: Callable[..., Tensor], project: Callable[..., Any] = project
) -> Callable[..., Tensor]:
    """Return the multi-head layer with this attention: f(x, *matrices, W_output).

    project: returns queries, keys and values of x and the matrices, by default W_query, W_key and
    W_value.
    """

    def apply(x: Tensor, *weights: Tensor) -> Tensor:
        *matrices, W_output = weights
        queries, keys, values = project(x, *matrices)
        heads = split(queries, setting.heads)
        kv = split(keys, setting.kv_heads), split(values, setting.kv_heads)
        return output(merge(attention(heads, *kv)), W_output)

    return apply


def first_example(tensors: Sequence[Tensor], batched: int) -> list[Tensor]:
    """Reduce the first `batched` tensors to their first batch row; the others have no batch."""
    return [tensor[:1] if i < batched else tensor for i, tensor in enumerate(tensors)]


def batched(setting: Setting) -> int:
    """Return how many of the leaves have a batch axis."""
    return 1 if setting.projections else 3


def only_first(upstream: Tensor) -> Tensor:
    """Set the gradient of all batch rows except the first to 0."""
    first = torch.zeros_like(upstream)
    first[:1] = upstream[:1]
    return first


class Expected(NamedTuple):
    """The expected results of the first batch row.

    values: output and gradients in float64. plain_errors: for each, the largest difference of the
    plain formula in the setting's dtype. eps: the machine epsilon of that dtype.
    """

    values: list[Tensor]
    plain_errors: list[float]
    eps: float

    @property
    def plain_error(self) -> float:
        """The error of the plain formula, computed as in `error`."""
        pairs = zip(self.plain_errors, self.values, strict=True)
        return max(_ratio(error, _largest(value)) for error, value in pairs)

    def error(self, results: Sequence[Tensor]) -> float:
        """Return the largest difference, relative to the largest expected number."""
        pairs = zip(differences(results, self.values), self.values, strict=True)
        return max(_ratio(difference, _largest(value)) for difference, value in pairs)

    def excess(self, results: Sequence[Tensor]) -> float:
        """Return the largest difference relative to the tolerance; above 1 the result is wrong.

        The tolerance is 2 * plain_error + 4 * eps * the largest expected number.
        """
        triples = zip(
            differences(results, self.values), self.plain_errors, self.values, strict=True
        )
        return max(
            _ratio(difference, 2 * error + 4 * self.eps * _largest(value))
            for difference, error, value in triples
        )


def _ratio(part: float, total: float) -> float:
    """Divide; 0 / 0 is 0: if a query sees one key, all gradients of its scores are exactly 0."""
    if part == 0:
        return 0.0
    return part / total if total else math.inf


def compute(setting: Setting) -> Expected:
    """Compute the expected results with the plain formula in float64, by blocks of queries, which
    limits the memory. Cached."""
    return _compute(replace(setting, compiled=False))


@lru_cache(maxsize=2)
def _compute(setting: Setting) -> Expected:
    low = inputs(setting)
    by_block = partial(_by_block, options=setting.options)
    function = layer(setting, by_block) if setting.projections else by_block
    tensors, upstream = first_example(low.leaves, batched(setting)), low.upstream[:1]
    values, plain = (
        results(function, leaves([x.to(dtype) for x in tensors], setting.backward), upstream)
        for dtype in (torch.float64, low.upstream.dtype)
    )
    return Expected(values, differences(plain, values), torch.finfo(low.upstream.dtype).eps)


def results(
    function: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor
) -> list[Tensor]:
    """Return the output, and the gradient of every leaf if they require gradients."""
    if not leaves[0].requires_grad:
        with torch.no_grad():
            return [function(*leaves)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def differences(results: Sequence[Tensor], values: Sequence[Tensor]) -> list[float]:
    """Return the largest difference of each pair; infinite if a result is not finite."""
    pairs = zip(results, values, strict=True)
    largest = (float((one.double() - other.double()).abs().max()) for one, other in pairs)
    return [math.inf if math.isnan(difference) else difference for difference in largest]


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _by_block(queries: Tensor, keys: Tensor, values: Tensor, *, options: dict[str, Any]) -> Tensor:
    """Compute the plain formula by blocks of queries, each computed again in the backward pass."""
    *_, heads, tokens, _ = queries.shape
    rows = max(1, _CELLS // (heads * tokens))
    causal = options["causal"] or options["window"] is not None

    def block(start: int) -> Tensor:
        end = min(start + rows, tokens)
        last = end if causal else tokens

        def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return attend(queries, keys, values, kernel="plain", offset=start, **options)

        parts = queries[..., start:end, :], keys[..., :last, :], values[..., :last, :]
        context: Tensor = checkpoint(
            attention, *parts, use_reentrant=False, preserve_rng_state=False
        )
        return context

    return torch.cat([block(start) for start in range(0, tokens, rows)], dim=-2)
