"""The mechanism itself, as a kernel: it takes every call."""

from __future__ import annotations

from headway.kernels.call import Call, Kernel
from headway.parts.arrays import Array
from headway.parts.attention import attention


def _run(call: Call) -> Array:
    return attention(call.queries, call.keys, call.values, **call.options())


PLAIN = Kernel(refuse=lambda call: None, run=_run)
