"""FlashAttention-2 in Triton, on CUDA: memory linear in the number of tokens in both passes.

The kernels are in `triton_flash`, which the first call imports, so that importing this file needs
neither Triton nor PyTorch. For tests, Triton's interpreter runs them slowly on a CPU: set
TRITON_INTERPRET=1 before the first import of Triton.
"""

import os
import sys
from importlib import metadata
from math import ceil, floor, prod

from headway.attention.arrays import Array
from headway.attention.dropout import check, hashed
from headway.attention.grid import first_position
from headway.attention.kernels.kernel import Kernel, in_function_transform
from headway.attention.masks import Band
from headway.attention.scores import scale_of
from headway.attention.spec import Spec


def _installed() -> bool:
    """Whether Triton is installed and supports nested tuples as arguments of kernels (3.6)."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= (3, 6)


_INSTALLED = _installed()


def _refuse(queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    torch = sys.modules.get("torch")
    arrays = (queries, keys, values)
    if torch is None or not all(isinstance(x, torch.Tensor) for x in arrays):
        return "supports PyTorch tensors only"
    if not _INSTALLED:
        return "needs the triton package, 3.6 or later"
    if in_function_transform():
        return "does not support torch.func transforms"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not all(x.is_cuda for x in arrays):
        return "needs CUDA"
    if len({x.dtype for x in arrays}) > 1:
        return "supports only queries, keys and values of one dtype"
    if queries.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "supports float32, bfloat16 and float16 only"
    if interpreted and queries.dtype == torch.bfloat16:
        return "does not support bfloat16 in Triton's interpreter, which multiplies it incorrectly"
    if max(queries.shape[-1], values.shape[-1]) > 256:
        return "supports heads of up to 256 features"
    if spec.mask is not None and not spec.mask.is_band:
        return "supports only masks that are bands, such as causal and window"
    if not (spec.offset is None or isinstance(spec.offset, int)):
        return "supports only one offset for all batch rows"
    if not isinstance(spec.batch_offset, int):
        return "supports only an int as batch_offset"
    return None


def _run(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    from headway.attention.kernels.triton_flash import flash

    seed = None
    if spec.dropout:
        check(spec)
        seed = hashed(spec.seed, like=queries)
    flat = (x.reshape(prod(x.shape[:-3]), *x.shape[-3:]) for x in (queries, keys, values))
    scale = scale_of(spec.scale, queries)
    band = _band(queries, keys, spec)
    context, *_ = flash(*flat, seed, band, scale, spec.softcap, spec.dropout)
    return context.reshape(*queries.shape[:-1], values.shape[-1])


def _band(queries: Array, keys: Array, spec: Spec) -> list[int]:
    """least, most, offset and batch_offset: a cell is allowed if least <= row - key <= most."""
    rows, columns = queries.shape[-2], keys.shape[-2]
    offset = first_position(queries, keys, spec)
    band = Band() if spec.mask is None else spec.mask.band
    # row - key is always between -columns and rows, so finite ints can replace infinite bounds.
    least = ceil(max(-columns, min(rows, band.least - offset)))
    most = floor(max(-columns, min(rows, band.most - offset)))
    return [least, most, offset, spec.batch_offset]


TRITON = Kernel(
    _run, frozenset({"mask", "scale", "softcap", "dropout", "offset", "batch_offset"}), _refuse
)
