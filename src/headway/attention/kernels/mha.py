"""PyTorch's multi_head_attention_forward, which `nn.MultiheadAttention` runs.

It always projects: here queries, keys, values and output each go through a matrix product with
the identity, so it does more work than the other kernels. Its boolean mask means the opposite of
ours (True = may not attend), and is turned round here.
"""

from __future__ import annotations

from math import prod
from typing import Any

from headway.attention.arrays import Array
from headway.attention.kernels.matrix import is_causal_from_top_left, matrix
from headway.attention.kernels.sdpa import SDPA
from headway.attention.scores import default_scale
from headway.attention.spec import Call, Kernel


def _refuse(call: Call) -> str | None:
    reason = SDPA.refuse(call)
    if reason is not None:
        return reason
    if call.queries.shape[-3] != call.keys.shape[-3]:
        return "has no grouped heads"
    if call.keys.shape[-1] != call.values.shape[-1]:
        return "takes values as wide as the keys only"
    if call.scale not in (None, default_scale(call.queries)):
        return "has the scale 1 / sqrt(d_k) only"
    return None


def _run(call: Call) -> Array:
    import torch

    *batch, heads, rows, dim = call.queries.shape
    columns = call.keys.shape[-2]
    mask: dict[str, Any] = {}
    alive = None
    if call.mask is not None or call.bias is not None:
        allowed, bias, alive = matrix(call)
        each = ~allowed if bias is None else bias
        if each.numel() == rows * columns:
            each = each.reshape(rows, columns)
        else:  # one for each head of each text, in one row
            each = each.expand(*call.queries.shape[:-1], columns).flatten(end_dim=-3)
        mask = {"attn_mask": each, "is_causal": is_causal_from_top_left(call)}

    identity = torch.eye(heads * dim, dtype=call.queries.dtype, device=call.queries.device)
    context, _ = torch.nn.functional.multi_head_attention_forward(
        _tokens_first(call.queries),
        _tokens_first(call.keys),
        _tokens_first(call.values),
        embed_dim_to_check=heads * dim,
        num_heads=heads,
        in_proj_weight=identity.repeat(3, 1),
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=identity,
        out_proj_bias=None,
        need_weights=False,
        **mask,
    )
    context = context.reshape(rows, prod(batch), heads, dim).permute(1, 2, 0, 3)
    context = context.reshape(call.queries.shape)
    return context if alive is None else torch.where(alive, context, 0.0)


def _tokens_first(x: Array) -> Array:
    """(..., heads, tokens, dim) -> (tokens, batch, heads * dim)."""
    return x.reshape(prod(x.shape[:-3]), *x.shape[-3:]).permute(2, 0, 1, 3).flatten(start_dim=-2)


MHA = Kernel(refuse=_refuse, run=_run)
