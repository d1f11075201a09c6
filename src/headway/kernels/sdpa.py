"""PyTorch's scaled_dot_product_attention, with whichever backend it chooses.

Its conventions differ from ours in three ways, mended here: `is_causal` counts positions from the
top left, a row with nothing to attend to is not promised to be 0, and dropout takes no seed.
"""

from __future__ import annotations

import sys
from typing import Any

from headway.kernels.call import Call, Kernel
from headway.parts.arrays import Array
from headway.parts.masks import causal, cells
from headway.parts.normalizers import softmax


def _refuse(call: Call) -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(call.queries, torch.Tensor):
        return "takes PyTorch tensors only"
    if call.normalizer is not softmax:
        return "has softmax only"
    if call.softcap is not None:
        return "has no softcap"
    if call.dropout:
        return "has no seeded dropout, so a run could not be repeated"
    return None


def _run(call: Call) -> Array:
    import torch

    queries, keys, values = call.queries, call.keys, call.values
    grouped = queries.shape[-3] != keys.shape[-3]

    def sdpa(**mask: Any) -> Array:
        return torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, scale=call.scale, enable_gqa=grouped, **mask
        )

    if call.mask is None and call.bias is None:
        return sdpa()
    if call.bias is None and _is_causal_from_top_left(call):
        return sdpa(is_causal=True)

    where = cells(queries, keys, call.offset)
    bias = None if call.bias is None else where.of(call.bias, "bias")
    allowed = torch.ones((), dtype=torch.bool, device=queries.device)
    if call.mask is not None:
        allowed = call.mask.on(where)
    if bias is not None:
        allowed = allowed & (bias != -torch.inf)
    # A dead row attends to everything and is then thrown away, so that no NaN reaches it or its
    # gradients.
    allowed = allowed | torch.zeros(where.shape[-2:], dtype=torch.bool, device=queries.device)
    alive = allowed.any(dim=-1, keepdim=True)
    allowed = allowed | ~alive
    if bias is None:
        context = sdpa(attn_mask=allowed)
    else:
        finite = torch.where(bias == -torch.inf, 0.0, bias).to(queries.dtype)
        context = sdpa(attn_mask=torch.where(allowed, finite, -torch.inf))
    return torch.where(alive, context, 0.0)


def _is_causal_from_top_left(call: Call) -> bool:
    """Whether the mask is the causal one alone and the first query meets the first key."""
    if call.mask is None or not call.mask.is_band or call.mask.band != causal.band:
        return False
    if call.offset is None:
        return bool(call.queries.shape[-2] == call.keys.shape[-2])
    return isinstance(call.offset, int) and call.offset == 0


SDPA = Kernel(refuse=_refuse, run=_run)
