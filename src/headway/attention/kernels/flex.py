"""PyTorch's flex_attention: compiled for the mask, it skips blocks that are completely masked.

Dong et al. 2024. The first call with a new shape, mask or option compiles it, which takes seconds.
(With dynamic shapes PyTorch cannot compile a bias or a softcap.) The mask is evaluated cell by
cell, so it must be a function of positions.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

from headway.attention.arrays import Array, compiles_for_torch
from headway.attention.grid import first_position, grid_of
from headway.attention.kernels.kernel import Kernel, in_function_transform, records_gradients
from headway.attention.kernels.matrix import matrix
from headway.attention.kernels.sdpa import SDPA, SOFTMAX_ONLY
from headway.attention.masks import Band, Mask
from headway.attention.spec import Spec, Unsupported

COMPILATIONS = 10_000  # PyTorch's default limit is 8


def _refuse(queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    reason = SDPA.refuse(queries, keys, values, spec)
    if reason is not None:
        return reason
    import torch

    if in_function_transform():
        return "does not support torch.func transforms"
    device = queries.device.type
    if device == "cpu" and compiles_for_torch():
        return "does not support calls in a function that is compiled for a CPU"
    if queries.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "supports float32, bfloat16 and float16 only"
    if 0 in (*queries.shape, *keys.shape, *values.shape):
        return "does not support empty tensors"
    if spec.mask is not None and spec.mask.predicate is None:
        return "supports masks of positions only, but the mask contains an array"
    if device == "cpu" and records_gradients(queries, keys, values, spec.bias):
        return "has no gradients on a CPU; use torch.no_grad() if you need no gradients"
    if device == "cpu" and keys.shape[-1] in (8, 16) and keys.shape[-2] % 16 == 8:
        # torch 2.13 with AVX2 writes the scores of the last 8 keys as if there were 16 of them.
        return "gives wrong results on a CPU for d_k of 8 or 16 and 8, 24, 40 ... keys"
    if device == "cuda" and min(keys.shape[-1], values.shape[-1]) < 16:
        return "supports only d_k >= 16 and d_v >= 16 on CUDA"
    return None


def block_mask(queries: Array, keys: Array, spec: Spec) -> Any:
    """The `BlockMask`: which blocks of the mask are empty, full or mixed; None without a mask.

    Making it takes time, because the complete matrix is evaluated. So it is kept as long as the
    mask exists, and made again if a tensor in the mask has changed.
    """
    if spec.mask is None:
        return None
    import torch

    *batch, heads, rows, _ = queries.shape
    columns, device = keys.shape[-2], queries.device
    first = first_position(queries, keys, spec)
    if not isinstance(first, int):
        first = torch.as_tensor(first, dtype=torch.int32, device=device).expand(batch).reshape(-1)
    sizes = (prod(batch), heads, rows, columns, device)
    # A tensor of one call cannot be told from that of another call by its address.
    is_once = not (isinstance(first, int) and isinstance(spec.batch_offset, int))
    if is_once or compiles_for_torch():
        return _blocks(spec, first, *sizes)
    if spec.mask.is_band:  # the same for all batch rows and heads
        return _band_blocks(spec.mask.band, first, rows, columns, device)
    kept = _kept.setdefault(spec.mask, {})
    key = (*sizes, first, spec.batch_offset, _version(spec.mask.predicate))
    if key not in kept:
        if len(kept) >= 16:
            kept.clear()
        kept[key] = _blocks(spec, first, *sizes)
    return kept[key]


_kept: WeakKeyDictionary[Mask, dict[Any, Any]] = WeakKeyDictionary()


def _version(value: Any) -> Any:
    """A value that changes when a number, a tensor, or a tensor in a function changes."""
    if hasattr(value, "is_inference"):  # a tensor
        return id(value), None if value.is_inference() else value._version
    cells = getattr(value, "__closure__", None)
    if cells:
        return tuple(_version(cell.cell_contents) for cell in cells)
    return value if isinstance(value, int | float) else id(value)


def _blocks(spec: Spec, first: Any, *sizes_and_device: Any) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    predicate, offset = spec.mask.predicate, spec.batch_offset  # type: ignore[union-attr]
    assert predicate is not None  # `_refuse` ensures this
    # Functions of four index tensors and nothing else: PyTorch's compiler knows no Mask and no
    # Spec, and counts the arguments.
    if isinstance(first, int):
        return create_block_mask(
            lambda batch, head, row, key: predicate(batch + offset, head, row + first, key),
            *sizes_and_device,
        )
    return create_block_mask(
        lambda batch, head, row, key: predicate(batch + offset, head, row + first[batch], key),
        *sizes_and_device,
    )


@lru_cache(maxsize=16)
def _band_blocks(band: Band, first: int, rows: int, columns: int, device: Any) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    least = max(band.least, first - columns)  # finite bounds that include all distances
    most = min(band.most, first + rows)
    return create_block_mask(
        lambda batch, head, row, key: (least <= row + first - key) & (row + first - key <= most),
        *(None, None, rows, columns, device),
    )


def _score_mod(queries: Array, keys: Array, spec: Spec) -> Callable[..., Array] | None:
    softcap, bias = spec.softcap, spec.bias
    if softcap is None and bias is None:
        return None

    def capped(score: Array) -> Array:
        return score if softcap is None else softcap * (score / softcap).tanh()

    if bias is None:
        return lambda score, batch, head, row, key: capped(score)
    grid = grid_of(queries, keys, spec)
    bias = grid.cells_of(bias, "bias").float().expand(grid.shape).reshape(-1, *grid.shape[-3:])
    return lambda score, batch, head, row, key: capped(score) + bias[batch, head, row, key]


@cache
def _compiled() -> Callable[..., Array]:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _flex(*arrays: Array, **options: Any) -> Array:
    """flex_attention, compiled; in a function that is compiled anyway it becomes a part of it."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    if compiles_for_torch():
        return flex_attention(*arrays, **options)
    limits = {"recompile_limit": COMPILATIONS, "accumulated_recompile_limit": COMPILATIONS}
    try:
        with torch._dynamo.config.patch(limits):
            return _compiled()(*arrays, **options)
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().split("\n")[0]
        raise Unsupported(
            f"PyTorch cannot compile flex_attention for this call: {reason}"
        ) from error


def _run(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    import torch

    # On a CPU flex_attention requires inputs without gradients.
    if not records_gradients(queries, keys, values, spec.bias):
        queries, keys, values = (x.detach() for x in (queries, keys, values))
        spec = spec._replace(bias=None if spec.bias is None else spec.bias.detach())
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (queries, keys, values))
    options = {
        "score_mod": _score_mod(queries, keys, spec),
        "block_mask": block_mask(queries, keys, spec),
        "scale": spec.scale,
        "enable_gqa": queries.shape[-3] != keys.shape[-3],
    }
    context = _flex(*flat, **options)
    context = context.reshape(*queries.shape[:-1], values.shape[-1])
    if queries.shape[-2] == 1 and (spec.mask is not None or spec.bias is not None):
        # For one query and many keys PyTorch runs another kernel, which returns NaN for a query
        # that may attend to no key.
        context = torch.where(matrix(queries, keys, spec).any_allowed, context, 0.0)
    return context


FLEX = Kernel(_run, SOFTMAX_ONLY | {"softcap"}, _refuse)
