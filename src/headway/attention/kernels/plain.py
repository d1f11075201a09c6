"""The mechanism itself, as a kernel: it takes every call."""

from __future__ import annotations

from headway.attention.arrays import Array
from headway.attention.formula import attention
from headway.attention.spec import Call, Kernel


def _run(call: Call) -> Array:
    return attention(call.queries, call.keys, call.values, **call.options())


PLAIN = Kernel(refuse=lambda call: None, run=_run)
