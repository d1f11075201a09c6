"""`tiled` with PyTorch, on any device.

Each step computes a tile of queries and a tile of keys for all heads at once. Tiles are overwritten
in place, because on a CPU allocating memory takes longer than the arithmetic. The rows of all query
heads that share a head of keys are in one tile, so keys are never repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor

from headway.attention.dropout import check, hashed, keep_hashed
from headway.attention.grid import first_position, grid_of
from headway.attention.kernels.kernel import in_forward_mode, in_function_transform
from headway.attention.masks import Band, Mask
from headway.attention.scores import scale_of
from headway.attention.spec import Spec

# The size of a tile of one head: at least 100 rows, for fast matrix products, but small enough for
# the cache. With at most FEW heads a tile has MORE_ROWS rows and still fits into the cache.
ROWS, COLUMNS = 128, 512
FEW, MORE_ROWS = 4, 512
# Scores are in units of log 2. On a CPU PyTorch's exp takes up to sixty times as long if the result
# is a denormal number, which is frequent in a peaked softmax; its exp2 does not.
UNIT = math.log2(math.e)


def refuse(keys: Tensor, spec: Spec) -> str | None:
    """The reason why this call is not supported; None if it is."""
    if torch.compiler.is_compiling():
        if spec.mask is not None and not spec.mask.is_band:
            return "supports only causal and window as a mask under torch.compile"
        if spec.bias is not None or spec.sink_logits is not None:
            return "supports no bias and no sink_logits under torch.compile"
        if spec.dropout or isinstance(spec.offset, Tensor):
            return "supports no dropout and no offset per row under torch.compile"
    elif in_function_transform() or in_forward_mode():
        return "does not support torch.func transforms"
    return None


def run(queries: Tensor, keys: Tensor, values: Tensor, spec: Spec) -> Tensor:
    """The context (..., heads, Tq, d_v)."""
    if torch.compiler.is_compiling():
        return _run_compiled(queries, keys, values, spec)
    context: Tensor = _Tiled.apply(  # type: ignore[no-untyped-call]
        queries, keys, values, spec.bias, spec.sink_logits, spec
    )
    return context


@final
class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
        spec: Spec,
    ) -> Tensor:
        spec = spec._replace(bias=bias, sink_logits=sinks)
        context, sums = _Tiles(queries, keys, values, spec).forward()
        ctx.save_for_backward(queries, keys, values, bias, sinks, context, sums)
        ctx.spec = spec._replace(bias=None, sink_logits=None)
        return context.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("kernel 'tiled' has no second derivative; use kernel='plain'")
        queries, keys, values, bias, sinks, context, sums = ctx.saved_tensors
        spec = ctx.spec._replace(bias=bias, sink_logits=sinks)
        tiles = _Tiles(queries, keys, values, spec)
        return (*tiles.backward(gradient, context, sums, of_bias=ctx.needs_input_grad[3]), None)


# For torch.compile the kernel is two custom operators. Without them torch.compile would unroll the
# loop over tiles into thousands of operations for a long text.


def _run_compiled(queries: Tensor, keys: Tensor, values: Tensor, spec: Spec) -> Tensor:
    band = Band() if spec.mask is None else spec.mask.band
    offset = first_position(queries, keys, spec)
    numbers = (*band, offset, scale_of(spec.scale, queries), spec.softcap)
    context: Tensor = _forward(queries, keys, values, *numbers)[0]
    return context.to(values.dtype)


def _banded(
    queries: Tensor, keys: Tensor, values: Tensor, least: float, most: float, *numbers: Any
) -> _Tiles:
    offset, scale, softcap = numbers
    mask = Mask(
        lambda batch, head, query, key: (query - key >= least) & (query - key <= most),
        band=Band(least, most),
    )
    spec = Spec(mask, scale=scale, softcap=softcap, offset=offset)
    return _Tiles(queries, keys, values, spec)


_INPUTS = (
    "Tensor queries, Tensor keys, Tensor values, "
    "float least, float most, SymInt offset, float scale, float? softcap"
)


@torch.library.custom_op(
    "headway::tiled", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)"
)
def _forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _banded(*inputs).forward()


@torch.library.custom_op(
    "headway::tiled_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor context, Tensor sums, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    gradient: Tensor, context: Tensor, sums: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _banded(*inputs).backward(gradient, context, sums, of_bias=False)
    return gradients[0].contiguous(), gradients[1].contiguous(), gradients[2].contiguous()


@_forward.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(queries.dtype, torch.float32)
    context = values.new_empty((*queries.shape[:-1], values.shape[-1]), dtype=dtype)
    folded = (keys.shape[:-2].numel(), queries.shape[-3] // keys.shape[-3], queries.shape[-2], 2)
    return context, queries.new_empty(folded, dtype=dtype)


@_backward.register_fake
def _(gradient: Tensor, context: Tensor, sums: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x).contiguous() for x in inputs[:3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:3])
    ctx.numbers = inputs[3:]


def _gradients(ctx: Any, gradient: Tensor, of_sums: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = _backward(gradient, *ctx.saved_tensors, *ctx.numbers)
    return (*gradients, *(None for _ in ctx.numbers))


_forward.register_autograd(_gradients, setup_context=_save)


class _Tiles:
    """The matrix of scores of a call, computed in tiles (n, group * rows, columns).

    n is the number of batch rows times heads of keys; `group` heads of queries share one head of
    keys. The dtype is float32 or wider.
    """

    def __init__(self, queries: Tensor, keys: Tensor, values: Tensor, spec: Spec) -> None:
        self.inputs, self.spec = (queries, keys, values, spec.bias, spec.sink_logits), spec
        self.dtype = torch.promote_types(queries.dtype, torch.float32)
        self.shape = queries.shape[:-2]  # (..., heads)
        self.count = math.prod(keys.shape[:-2])
        self.group = queries.shape[-3] // max(keys.shape[-3], 1)
        self.queries = self._folded(queries)
        self.keys = keys.to(self.dtype).reshape(self.count, *keys.shape[-2:])
        self.values = values.to(self.dtype).reshape(self.count, *values.shape[-2:])
        self.scale = scale_of(spec.scale, queries) * UNIT
        self.grid = grid_of(queries, keys, spec)
        self.sinks: Tensor | None = None  # (n, group, 1, 1), in units of log 2
        if spec.sink_logits is not None:
            sinks = self.grid.of_heads(spec.sink_logits, "sink_logits").to(self.dtype) * UNIT
            self.sinks = sinks.expand(*self.shape, 1, 1).reshape(self.count, self.group, 1, 1)
        offset = first_position(queries, keys, spec)
        self.offset = offset if isinstance(offset, int) else None
        if spec.dropout:
            check(spec)
            assert spec.seed is not None  # `check` ensures this
            self.seed = hashed(spec.seed, like=self.queries)
        heads = self.count * self.group
        band = Band() if spec.mask is None else spec.mask.band
        # With a narrow band, most cells of a tile of MORE_ROWS would be masked.
        is_wide = band.most - band.least > 2 * MORE_ROWS
        self.rows = MORE_ROWS if heads <= FEW and is_wide else ROWS
        tile = heads * min(self.rows, queries.shape[-2]) * min(COLUMNS, keys.shape[-2])
        self.buffers = torch.empty((2, tile), dtype=self.dtype, device=queries.device)

    def forward(self) -> tuple[Tensor, Tensor]:
        """The context, and for each row the largest score and the sum of 2^(score - largest).

        One number per row, largest + log2(sum), would lose precision if the largest score is large.
        """
        d_v = self.values.shape[-1]
        context = self.queries.new_empty((*self.queries.shape[:-1], d_v))
        sums = self.queries.new_empty((*self.queries.shape[:-1], 2))
        for rows in _blocks(0, self.queries.shape[-2], self.rows):
            queries = self._tile(self.queries, rows) * self.scale
            weighted = queries.new_zeros((*queries.shape[:-1], d_v))
            largest = queries.new_full((*queries.shape[:-1], 1), -torch.inf)
            if self.sinks is not None:  # the sum starts with the sink, which has no value
                largest.view(self.count, self.group, -1, 1).copy_(self.sinks)
            anchor = torch.where(largest == -torch.inf, 0.0, largest)
            total = (largest - anchor).exp2_()
            for columns in self._columns(rows):
                weights, _ = self._scores(queries, rows, columns)
                before, largest = largest, torch.maximum(largest, weights.amax(-1, keepdim=True))
                # Before the first allowed key the largest score is -inf, and -inf - -inf is NaN.
                anchor = torch.where(largest == -torch.inf, 0.0, largest)
                shrink = (before - anchor).exp2_()
                weights.sub_(anchor).exp2_()
                total.mul_(shrink).add_(weights.sum(-1, keepdim=True))
                factors = self._factors(rows, columns)
                if factors is not None:  # the sum includes the weights that are dropped
                    weights.mul_(factors)
                weighted.mul_(shrink).baddbmm_(weights, self.values[:, columns])
            total.masked_fill_(total == 0, 1.0)  # no allowed key: the context is 0
            weighted.div_(total)
            context[:, :, rows] = weighted.view(self.count, self.group, -1, d_v)
            row_sums = torch.cat([anchor, total], dim=-1)
            sums[:, :, rows] = row_sums.view(self.count, self.group, -1, 2)
        return context.view(*self.shape, -1, d_v), sums

    def backward(
        self, gradient: Tensor, context: Tensor, sums: Tensor, of_bias: bool
    ) -> tuple[Any, ...]:
        """The gradients of queries, keys, values, bias (None unless of_bias) and sink_logits."""
        gradient, context = self._folded(gradient), self._folded(context)
        d_queries = torch.empty_like(self.queries)
        d_keys, d_values = torch.zeros_like(self.keys), torch.zeros_like(self.values)
        bias = self.spec.bias
        d_bias = None if bias is None or not of_bias else torch.zeros_like(bias, dtype=self.dtype)
        d_sinks = None if self.sinks is None else torch.zeros_like(self.sinks)
        for rows in _blocks(0, self.queries.shape[-2], self.rows):
            queries = self._tile(self.queries, rows) * self.scale
            largest, total = self._tile(sums, rows).tensor_split(2, dim=-1)
            # Divide the gradient by the sum instead of dividing each weight in the tiles.
            of_context = self._tile(gradient, rows) / total
            # For each row the sum of weight * gradient of weight.
            common = (of_context * self._tile(context, rows)).sum(-1, keepdim=True)
            if self.sinks is not None and d_sinks is not None:
                anchors, commons = (
                    x.view(self.count, self.group, -1, 1) for x in (largest, common)
                )
                d_sinks -= ((self.sinks - anchors).exp2() * commons).sum(-2, keepdim=True)
            of_queries = torch.zeros_like(queries)
            for columns in self._columns(rows):
                keys, values = self.keys[:, columns], self.values[:, columns]
                weights, slope = self._scores(queries, rows, columns)
                weights.sub_(largest).exp2_()
                of_scores = self._product(1, of_context, values)
                factors = self._factors(rows, columns)
                used = weights if factors is None else weights * factors
                d_values[:, columns].baddbmm_(used.mT, of_context)
                if factors is not None:
                    of_scores.mul_(factors)
                of_scores.sub_(common).mul_(weights)
                if d_bias is not None:
                    part = self.grid.select(rows=rows, columns=columns).cells_of(d_bias, "bias")
                    part += self._by_cell(of_scores).sum_to_size(part.shape)
                if slope is not None:
                    of_scores.mul_(slope)
                of_queries.baddbmm_(of_scores, keys)
                d_keys[:, columns].baddbmm_(of_scores.mT, queries)
            d_queries[:, :, rows] = of_queries.view_as(d_queries[:, :, rows])
        d_queries.mul_(self.scale / UNIT)
        d_keys.div_(UNIT)
        if d_sinks is not None:
            d_sinks = d_sinks.view(-1, self.shape[-1]).sum(0)
        gradients = (d_queries, d_keys, d_values, d_bias, d_sinks)
        return tuple(
            None if d is None or x is None else d.reshape(x.shape).to(x.dtype)
            for x, d in zip(self.inputs, gradients, strict=True)
        )

    def _folded(self, x: Tensor) -> Tensor:
        """(..., heads, tokens, dim) -> (n, group, tokens, dim)"""
        return x.to(self.dtype).reshape(self.count, self.group, *x.shape[-2:])

    def _tile(self, x: Tensor, rows: slice) -> Tensor:
        """(n, group, tokens, dim) -> (n, group * rows, dim)"""
        return x[:, :, rows].flatten(1, 2)

    def _by_cell(self, tile: Tensor) -> Tensor:
        """A tile as (..., heads, rows, columns), without a copy."""
        return tile.view(*self.shape, -1, tile.shape[-1])

    def _product(self, buffer: int, one: Tensor, other: Tensor) -> Tensor:
        shape = (self.count, one.shape[1], other.shape[1])
        out = self.buffers[buffer, : math.prod(shape)].view(shape)
        return torch.bmm(one, other.mT, out=out)

    def _columns(self, rows: slice) -> Iterator[slice]:
        """The tiles of keys that the mask's band allows for any of these rows."""
        first, end = 0, self.keys.shape[-2]
        if self.spec.mask is not None and self.offset is not None:
            band = self.spec.mask.band
            # Row r may attend to keys from r + offset - most to r + offset - least.
            first = max(first, rows.start + self.offset - band.most)
            end = min(end, rows.stop - 1 + self.offset - band.least + 1)
        return _blocks(int(first), int(end), COLUMNS)

    def _scores(self, queries: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor | None]:
        """A tile of masked scores, and the derivative of the softcap (None without one)."""
        scores = self._product(0, queries, self.keys[:, columns])
        spec, slope = self.spec, None
        if spec.softcap is not None:
            scores.div_(spec.softcap * UNIT).tanh_()
            slope = 1 - scores.square()
            scores.mul_(spec.softcap * UNIT)
        by_cell = self._by_cell(scores)
        grid = self.grid.select(rows=rows, columns=columns)
        if spec.bias is not None:
            by_cell += grid.cells_of(spec.bias, "bias").to(self.dtype) * UNIT
        if spec.mask is not None and not self._all_inside(spec.mask, rows, columns):
            # On a CPU this is ten times as fast as masked_fill_.
            most = torch.where(spec.mask.on(grid), torch.inf, -torch.inf).to(scores.dtype)
            torch.minimum(by_cell, most, out=by_cell)
        return scores, slope

    def _all_inside(self, mask: Mask, rows: slice, columns: slice) -> bool:
        """Whether the mask is a band and allows all cells of the tile."""
        if not mask.is_band or self.offset is None:
            return False
        nearest = rows.start + self.offset - (columns.stop - 1)
        farthest = rows.stop - 1 + self.offset - columns.start
        return bool(mask.band.least <= nearest and farthest <= mask.band.most)

    def _factors(self, rows: slice, columns: slice) -> Tensor | None:
        """The factors of dropout: 0 for dropped cells, 1 / (1 - rate) for the others."""
        rate = self.spec.dropout
        if not rate:
            return None
        grid = self.grid.select(rows=rows, columns=columns)
        coordinates = (grid.batch, grid.head, grid.query, grid.key)
        is_kept: Tensor = keep_hashed(rate, self.seed, *coordinates)
        factors = is_kept.expand(*self.shape, *is_kept.shape[-2:]).to(self.dtype).div_(1 - rate)
        return factors.view(self.count, -1, factors.shape[-1])


def _blocks(first: int, end: int, size: int) -> Iterator[slice]:
    for start in range(first, end, size):
        yield slice(start, min(start + size, end))
