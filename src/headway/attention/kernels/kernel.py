"""The type of kernels: a function of arrays and a Spec, and the options that it supports."""

import sys
from collections.abc import Callable
from typing import NamedTuple

from headway.attention.arrays import Array
from headway.attention.formula import Attend
from headway.attention.spec import Spec, used

EVERY_OPTION = frozenset(Spec._fields)

# queries, keys, values, spec -> why a kernel refuses the call, such as "needs CUDA", or None
Refuse = Callable[[Array, Array, Array, Spec], str | None]


def refuse_no_heads(queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    """Refuse arrays with 0 heads, which cannot be divided into groups."""
    return None if queries.shape[-3] else "does not support arrays with 0 heads"


def in_function_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp ...) is active.

    Kernels that are an autograd.Function or a custom operator have no rules for transforms.
    """
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch._C._are_functorch_transforms_active())


def in_forward_mode() -> bool:
    """Whether torch.func.jvp, or a dual level of torch.autograd.forward_ad, is active."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.autograd.forward_ad._current_level >= 0)


def records_gradients(*arrays: Array | None) -> bool:
    """Whether PyTorch records gradients for one of the arrays."""
    torch = sys.modules.get("torch")
    is_enabled = torch is not None and torch.is_grad_enabled()
    return is_enabled and any(getattr(x, "requires_grad", False) for x in arrays)


class Kernel(NamedTuple):
    """An implementation of attention.

    supports: the options of `Spec` that it supports; calls with other options are refused.
    refuse: checks all other limits, such as an engine, a dtype or a kind of mask.
    """

    run: Attend
    supports: frozenset[str] = EVERY_OPTION
    refuse: Refuse = lambda queries, keys, values, spec: None


def refusal(kernel: Kernel, queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    """The reason why this kernel does not support the call; None if it does."""
    for name in used(spec):
        if name not in kernel.supports:
            return f"does not support the option {name}"
    return kernel.refuse(queries, keys, values, spec)
