"""What a kernel is: a function of arrays and a Spec, and what it supports."""

from __future__ import annotations

import sys
from typing import NamedTuple, Protocol

from headway.attention.arrays import Array
from headway.attention.spec import Spec, used

EVERY_OPTION = frozenset(Spec._fields)


class Run(Protocol):
    """The context of queries, keys and values: (..., heads, Tq, d_v)."""

    def __call__(self, queries: Array, keys: Array, values: Array, spec: Spec) -> Array: ...


class Refuse(Protocol):
    """Why a kernel does not support these arrays and options, as "does ..."; None if it does."""

    def __call__(self, queries: Array, keys: Array, values: Array, spec: Spec) -> str | None: ...


def _refuse_nothing(queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    return None


def in_function_transform() -> bool:
    """Whether torch.func (grad, vmap, jvp ...) transforms what runs now.

    An autograd.Function or a compiled operator would need rules of its own for each transform.
    """
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch._C._are_functorch_transforms_active())


def in_forward_mode() -> bool:
    """Whether torch.func.jvp, or a dual level of torch.autograd.forward_ad, is active."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.autograd.forward_ad._current_level >= 0)


class Kernel(NamedTuple):
    """One way to compute attention.

    supports: the options of `Spec` that it knows; a call that uses another is refused. refuse:
    what it does not support beyond that, such as an engine, a dtype or a kind of mask.
    """

    run: Run
    supports: frozenset[str] = EVERY_OPTION
    refuse: Refuse = _refuse_nothing


def refusal(kernel: Kernel, queries: Array, keys: Array, values: Array, spec: Spec) -> str | None:
    """Why this kernel does not support the call; None if it does."""
    for name in used(spec):
        if name not in kernel.supports:
            return f"does not support the option {name}"
    return kernel.refuse(queries, keys, values, spec)
