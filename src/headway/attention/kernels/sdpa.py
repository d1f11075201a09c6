"""PyTorch's scaled_dot_product_attention, with the backend it chooses or with a given backend.

Four conventions differ from ours. `is_causal` counts positions from the top left, the context of a
query that may attend to no key is unspecified, and on a CPU a query of NaN gets a context of 0
(pytorch/pytorch#141128): all three are corrected here. Dropout takes no seed, so it is refused.
"""

import sys
import warnings
from functools import partial
from math import isfinite
from typing import Any

from headway.attention.arrays import Array, widened
from headway.attention.heads import repeat
from headway.attention.kernels.kernel import (
    Kernel,
    in_forward_mode,
    in_function_transform,
    records_gradients,
)
from headway.attention.kernels.matrix import is_causal_from_top_left, is_unmasked, matrix
from headway.attention.spec import Spec, Unsupported

# The options that the attention functions of PyTorch and JAX support. They always use the softmax.
SOFTMAX_ONLY = frozenset({"mask", "bias", "scale", "offset", "batch_offset"})

# On a CPU, the backward pass of up to so many 16-bit tokens takes half the time in float32: 1.5 ms
# instead of 3.4 for 12 x 4 x 64 x 32, 4.8 instead of 8.2 for twice the tokens (PyTorch 2.13).
SHORT = 128


def _refuse(queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(queries, torch.Tensor):
        return "supports PyTorch tensors only"
    return "does not support forward-mode derivatives" if in_forward_mode() else None


def _run(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    import torch

    sdpa = torch.nn.functional.scaled_dot_product_attention
    options: dict[str, Any] = {"scale": spec.scale, "enable_gqa": _is_grouped(queries, keys)}
    any_allowed, dtype = None, queries.dtype
    is_short = queries.device.type == "cpu" and queries.shape[-2] <= SHORT
    if is_short and records_gradients(queries, keys, values):
        queries, keys, values = widened(queries), widened(keys), widened(values)
    if is_unmasked(queries, keys, spec):
        context = sdpa(queries, keys, values, **options)
    elif is_causal_from_top_left(queries, keys, spec):
        context = sdpa(queries, keys, values, is_causal=True, **options)
    else:
        allowed, bias, any_allowed = matrix(queries, keys, spec)
        mask = allowed if bias is None else bias
        context = sdpa(queries, keys, values, attn_mask=mask, **options)
    if not queries.is_cuda:
        context = _with_nan(context, queries, keys)
    context = context if any_allowed is None else torch.where(any_allowed, context, 0.0)
    return context.to(dtype)


def _with_nan(context: Array, queries: Array, keys: Array) -> Array:
    """Set the context to NaN for queries that are not finite.

    If there is only one key, a key that is not finite has the same effect, because PyTorch's
    softmax of one score is always 1.
    """
    import torch

    one_key = keys.shape[-2] == 1
    if not torch.compiler.is_compiling() and not in_function_transform():
        total = _sum(queries) + _sum(keys) if one_key else _sum(queries)
        if isfinite(total):  # takes a third of the time of the lines below
            return context
    queries, keys = queries.detach(), keys.detach()
    # x - x is 0 for finite numbers, otherwise NaN.
    missing = (queries - queries).sum(-1, keepdim=True)
    if one_key:
        missing = missing + repeat(keys - keys, like=queries).sum(-1, keepdim=True)
    return context + missing


def _sum(x: Array) -> float:
    """The sum of all numbers, in float32 or wider because a sum in float16 could overflow."""
    x = x.detach()
    return float((widened(x) if x.itemsize == 2 else x).sum())


def _is_grouped(queries: Array, keys: Array) -> bool:
    return bool(queries.shape[-3] != keys.shape[-3])


def _refuse_on(backend: str, queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    reason = _refuse(queries, keys, values, spec)
    if reason is not None:
        return reason
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if torch.compiler.is_compiling():
        return None  # the check below does not work here; the call itself raises an error instead
    queries, keys, values = _in_rows(queries, keys, values)
    mask: dict[str, Any] = {}
    if is_causal_from_top_left(queries, keys, spec):
        mask = {"is_causal": True}
    elif not is_unmasked(queries, keys, spec):
        # PyTorch checks only the size and dtype of the mask, so one expanded row is sufficient.
        kind = torch.bool if spec.bias is None else queries.dtype
        columns = keys.shape[-2]
        row = torch.zeros(columns, dtype=kind, device=queries.device)
        if spec.bias is not None and torch.is_grad_enabled():
            row.requires_grad_(spec.bias.requires_grad)
        mask = {"attn_mask": row.expand(*queries.shape[:-1], columns)}
    with warnings.catch_warnings(record=True) as caught, sdpa_kernel(getattr(SDPBackend, backend)):
        warnings.simplefilter("always")
        try:
            # This function is private, but no public function supports all devices.
            torch._fused_sdp_choice(
                queries,
                keys,
                values,
                **mask,
                scale=spec.scale,
                enable_gqa=_is_grouped(queries, keys),
            )
        except RuntimeError as error:
            messages = [str(warning.message) for warning in caught]
            return _reason(error, messages, queries.device.type)
    return None


def _in_rows(*arrays: Array) -> tuple[Array, ...]:
    """Make the features of each token contiguous, which all backends except MATH expect."""
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in arrays)


def _reason(error: RuntimeError, messages: list[str], device: str) -> str:
    if "No viable backend" in str(error):
        return f"has no such backend on {device}"
    reasons = [message.split(" (Triggered")[0] for message in messages]
    # The other messages are headings, or about backends that are disabled here.
    reasons = [text for text in reasons if "because:" not in text and "disabled" not in text]
    return f"is refused by PyTorch: {' '.join(reasons) or 'no reason given'}"


def _run_on(backend: str, queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        try:
            queries, keys, values = _in_rows(queries, keys, values)
            return _run(queries, keys, values, spec)
        except RuntimeError as error:
            if "No available kernel" in str(error) or "No viable backend" in str(error):
                raise Unsupported(f"PyTorch cannot run this call on {backend}: {error}") from error
            raise


def _named(backend: str) -> Kernel:
    return Kernel(partial(_run_on, backend), SOFTMAX_ONLY, partial(_refuse_on, backend))


SDPA = Kernel(_run, SOFTMAX_ONLY, _refuse)
MATH = _named("MATH")
FLASH = _named("FLASH_ATTENTION")
EFFICIENT = _named("EFFICIENT_ATTENTION")
CUDNN = _named("CUDNN_ATTENTION")
