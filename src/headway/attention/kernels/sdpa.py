"""PyTorch's scaled_dot_product_attention: with the backend it chooses, and with each by name.

Its conventions differ from ours in three ways, mended here: `is_causal` counts positions from the
top left, a row with nothing to attend to is not promised to be 0, and dropout takes no seed.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

from headway.attention.arrays import Array
from headway.attention.kernels.matrix import is_causal_from_top_left, matrix
from headway.attention.spec import Call, Kernel, Unsupported, beyond_softmax


def _refuse(call: Call) -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(call.queries, torch.Tensor):
        return "takes PyTorch tensors only"
    return beyond_softmax(call)


def _run(call: Call) -> Array:
    import torch

    sdpa = torch.nn.functional.scaled_dot_product_attention
    inputs = (call.queries, call.keys, call.values)
    options: dict[str, Any] = {"scale": call.scale, "enable_gqa": _is_grouped(call)}
    if call.mask is None and call.bias is None:
        return sdpa(*inputs, **options)
    if is_causal_from_top_left(call):
        return sdpa(*inputs, is_causal=True, **options)
    allowed, bias, alive = matrix(call)
    context = sdpa(*inputs, attn_mask=allowed if bias is None else bias, **options)
    return torch.where(alive, context, 0.0)


def _is_grouped(call: Call) -> bool:
    return bool(call.queries.shape[-3] != call.keys.shape[-3])


def _refuse_on(backend: str, call: Call) -> str | None:
    reason = _refuse(call)
    if reason is not None:
        return reason
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if torch.compiler.is_compiling():  # then PyTorch cannot be asked, and raises by itself
        return None
    call = _in_rows(call)
    mask: dict[str, Any] = {}
    if is_causal_from_top_left(call):
        mask = {"is_causal": True}
    elif call.mask is not None or call.bias is not None:
        # Its size and kind, one row for all.
        kind = torch.bool if call.bias is None else call.queries.dtype
        columns = call.keys.shape[-2]
        row = torch.zeros(columns, dtype=kind, device=call.queries.device)
        if call.bias is not None and torch.is_grad_enabled():
            row.requires_grad_(call.bias.requires_grad)
        mask = {"attn_mask": row.expand(*call.queries.shape[:-1], columns)}
    with warnings.catch_warnings(record=True) as said, sdpa_kernel(getattr(SDPBackend, backend)):
        warnings.simplefilter("always")
        try:
            # Private, but the one question that PyTorch answers for every device.
            torch._fused_sdp_choice(
                call.queries,
                call.keys,
                call.values,
                **mask,
                scale=call.scale,
                enable_gqa=_is_grouped(call),
            )
        except RuntimeError as error:
            return _reason(error, [str(each.message) for each in said], call.queries.device.type)
    return None


def _in_rows(call: Call) -> Call:
    """The same with the features of a token side by side, as all backends but MATH want them."""
    inputs = {"queries": call.queries, "keys": call.keys, "values": call.values}
    return replace(
        call, **{name: x if x.stride(-1) == 1 else x.contiguous() for name, x in inputs.items()}
    )


def _reason(error: RuntimeError, said: list[str], device: str) -> str:
    if "No viable backend" in str(error):
        return f"has no such backend on {device}"
    reasons = [each.split(" (Triggered")[0] for each in said]
    # What is left out are headings, and the other backends, which are switched off here.
    reasons = [each for each in reasons if "because:" not in each and "disabled" not in each]
    return f"is refused by PyTorch: {' '.join(reasons) or 'it does not say why'}"


def _run_on(backend: str, call: Call) -> Array:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        try:
            return _run(_in_rows(call))
        except RuntimeError as error:
            if "No available kernel" in str(error) or "No viable backend" in str(error):
                raise Unsupported(f"PyTorch cannot run this call on {backend}: {error}") from error
            raise


def _named(backend: str) -> Kernel:
    return Kernel(refuse=partial(_refuse_on, backend), run=partial(_run_on, backend))


SDPA = Kernel(refuse=_refuse, run=_run)
MATH = _named("MATH")
FLASH = _named("FLASH_ATTENTION")
EFFICIENT = _named("EFFICIENT_ATTENTION")
CUDNN = _named("CUDNN_ATTENTION")
