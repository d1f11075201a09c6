"""FlashAttention-2 in Triton, on CUDA: memory linear in the length, forward and backward.

The kernels stand in `triton_flash`, which is imported with the first call that runs: importing
this file needs neither Triton nor PyTorch. Triton's interpreter runs them on a CPU, slowly, for
tests: TRITON_INTERPRET=1, set before Triton's first import.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from math import ceil, floor, prod

from headway.attention.arrays import Array
from headway.attention.dropout import check, hashed
from headway.attention.masks import Band
from headway.attention.normalizers import softmax
from headway.attention.scores import default_scale
from headway.attention.spec import Call, Kernel


def _installed() -> bool:
    """Whether Triton is there, and takes kernels whose arguments are tuples of tuples."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= (3, 6)


_INSTALLED = _installed()


def _refuse(call: Call) -> str | None:
    torch = sys.modules.get("torch")
    arrays = (call.queries, call.keys, call.values)
    if torch is None or not all(isinstance(x, torch.Tensor) for x in arrays):
        return "takes PyTorch tensors only"
    if not _INSTALLED:
        return "needs the triton package, 3.6 or later"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not all(x.is_cuda for x in arrays):
        return "needs CUDA"
    if len({x.dtype for x in arrays}) > 1:
        return "takes queries, keys and values of one type"
    if call.queries.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "takes float32, bfloat16 and float16 only"
    if interpreted and call.queries.dtype == torch.bfloat16:
        return "takes no bfloat16 in Triton's interpreter, which multiplies it wrongly"
    if max(call.queries.shape[-1], call.values.shape[-1]) > 256:
        return "takes heads of up to 256 numbers"
    if call.normalizer is not softmax:
        return "has softmax only"
    if call.bias is not None:
        return "has no bias"
    if call.mask is not None and not call.mask.is_band:
        return "has no masks but bands, such as causal and window"
    if not (call.offset is None or isinstance(call.offset, int)):
        return "has one offset for all batch rows"
    return None


def _run(call: Call) -> Array:
    from headway.attention.kernels.triton_flash import flash

    seed = None
    if call.dropout:
        check(call.dropout, call.seed)
        seed = hashed(call.seed, like=call.queries)
    queries, keys, values = (
        x.reshape(prod(x.shape[:-3]), *x.shape[-3:]) for x in (call.queries, call.keys, call.values)
    )
    scale = default_scale(queries) if call.scale is None else call.scale
    context, *_ = flash(queries, keys, values, seed, _band(call), scale, call.softcap, call.dropout)
    return context.reshape(*call.queries.shape[:-1], values.shape[-1])


def _band(call: Call) -> list[int]:
    """least, most and offset: a query's row less a key it may see lies from least to most."""
    rows, columns = call.queries.shape[-2], call.keys.shape[-2]
    offset = columns - rows if call.offset is None else call.offset
    band = Band() if call.mask is None else call.mask.band
    # No row less a key is below -columns or above rows: an int instead of infinity.
    least = ceil(max(-columns, min(rows, band.least - offset)))
    most = floor(max(-columns, min(rows, band.most - offset)))
    return [least, most, offset]


TRITON = Kernel(refuse=_refuse, run=_run)
