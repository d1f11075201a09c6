"""PyTorch's flex_attention: compiled for the mask, it skips the blocks in which nobody attends.

Dong et al. 2024. It is compiled for each shape, mask and option when that is first met, which
takes seconds. (For shapes that vary PyTorch cannot compile a bias or a softcap.) The mask is asked
cell by cell, so it must be one of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from math import prod
from typing import Any

from headway.attention.arrays import Array
from headway.attention.kernels.matrix import matrix
from headway.attention.kernels.sdpa import SDPA
from headway.attention.masks import Band, Cells, Mask, cells
from headway.attention.spec import Call, Kernel, Unsupported

COMPILATIONS = 10_000  # where PyTorch gives up after 8


def _refuse(call: Call) -> str | None:
    reason = SDPA.refuse(replace(call, softcap=None))
    if reason is not None:
        return reason
    import torch

    if torch.compiler.is_compiling():
        return "is compiled by itself, and not again as a part of something"
    device = call.queries.device.type
    if call.queries.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "takes float32, bfloat16 and float16 only"
    if 0 in (*call.queries.shape, *call.values.shape):
        return "takes no empty tensors"
    if call.mask is not None and not call.mask.by_position:
        return "takes masks of positions only, and this one holds an array"
    if device == "cpu" and _wants_gradient(call):
        return "has no gradients on a CPU: call it within torch.no_grad()"
    if device == "cpu" and call.keys.shape[-1] in (8, 16) and call.keys.shape[-2] % 16 == 8:
        # torch 2.13 with AVX2: the scores of the last eight keys are written as those of sixteen.
        return "is wrong on a CPU for d_k of 8 or 16 when the keys are 8, 24, 40 ..."
    if device == "cuda" and min(call.keys.shape[-1], call.values.shape[-1]) < 16:
        return "takes d_k and d_v of 16 and more only on CUDA"
    return None


def _wants_gradient(call: Call) -> bool:
    import torch

    inputs = (call.queries, call.keys, call.values, call.bias)
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def block_mask(call: Call) -> Any:
    """Which blocks of the call's mask are empty, full or mixed: a `BlockMask`; None without a mask.

    It is made of the whole matrix, which takes time: that of a band (causal, a window) is kept.
    """
    if call.mask is None:
        return None
    import torch

    *batch, heads, rows, _ = call.queries.shape
    columns, device = call.keys.shape[-2], call.queries.device
    first = columns - rows if call.offset is None else call.offset
    if call.mask.is_band and isinstance(first, int):  # the same for every head of every text
        return _band_blocks(call.mask.band, first, rows, columns, device)
    if not isinstance(first, int):
        first = torch.as_tensor(first, dtype=torch.int32, device=device).expand(batch).reshape(-1)
    return _blocks(call.mask, first, prod(batch), heads, rows, columns, device)


def _blocks(mask: Mask, first: Any, *sizes_and_device: Any) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def query(batch: Array, row: Array) -> Array:
        return row + (first if isinstance(first, int) else first[batch])

    # A lambda, here and below, for PyTorch counts its arguments: no decorator may hide them.
    return create_block_mask(
        lambda batch, head, row, key: mask.on(Cells((), batch, head, query(batch, row), key)),
        *sizes_and_device,
    )


@lru_cache(maxsize=16)
def _band_blocks(band: Band, first: int, rows: int, columns: int, device: Any) -> Any:
    least = max(band.least, first - columns)  # finite: all distances lie between
    most = min(band.most, first + rows)
    mask = Mask(lambda batch, head, query, key: (least <= query - key) & (query - key <= most))
    return _blocks(mask, first, None, None, rows, columns, device)


def _score_mod(call: Call) -> Callable[..., Array] | None:
    softcap, bias = call.softcap, call.bias
    if softcap is None and bias is None:
        return None

    def capped(score: Array) -> Array:
        return score if softcap is None else softcap * (score / softcap).tanh()

    if bias is None:
        return lambda score, batch, head, row, key: capped(score)
    where = cells(call.queries, call.keys, call.offset)
    bias = where.of(bias, "bias").float().expand(where.shape).reshape(-1, *where.shape[-3:])
    return lambda score, batch, head, row, key: capped(score) + bias[batch, head, row, key]


@cache
def _compiled() -> Callable[..., Array]:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _run(call: Call) -> Array:
    import torch

    if not _wants_gradient(call):  # as flex_attention on a CPU wants to see
        tensors = {name: getattr(call, name) for name in ("queries", "keys", "values", "bias")}
        call = replace(call, **{n: x.detach() for n, x in tensors.items() if x is not None})
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (call.queries, call.keys, call.values))
    options = {
        "score_mod": _score_mod(call),
        "block_mask": block_mask(call),
        "scale": call.scale,
        "enable_gqa": call.queries.shape[-3] != call.keys.shape[-3],
    }
    limits = {"recompile_limit": COMPILATIONS, "accumulated_recompile_limit": COMPILATIONS}
    try:
        with torch._dynamo.config.patch(limits):
            context = _compiled()(*flat, **options)
    except torch._dynamo.exc.TorchDynamoException as error:
        said = str(error).strip().split("\n")[0]
        raise Unsupported(f"PyTorch cannot compile flex_attention for this call: {said}") from error
    context = context.reshape(*call.queries.shape[:-1], call.values.shape[-1])
    if call.queries.shape[-2] == 1 and (call.mask is not None or call.bias is not None):
        # For one query and many keys another kernel runs, which gives NaN when all rows are dead.
        context = torch.where(matrix(call).alive, context, 0.0)
    return context


FLEX = Kernel(refuse=_refuse, run=_run)
