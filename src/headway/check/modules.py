"""Modules of PyTorch: their precision, and their state, which is restored after the checks.

PyTorch is only used if the checked code has imported it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def is_module(attention: Any) -> bool:
    """Whether this is a module of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(attention, torch.nn.Module)


def converted(module: Any, dtype: str) -> Any:
    """Convert the parameters and buffers of a module to a precision, in place."""
    return module.to(getattr(sys.modules["torch"], dtype))


@contextmanager
def unchanged(attention: Any) -> Iterator[None]:
    """Restore a module's mode, parameters and buffers afterwards."""
    if not is_module(attention):
        yield
        return
    modes = {module: module.training for module in attention.modules()}
    values = [*attention.parameters(), *attention.buffers()]
    copies = [value.detach().clone() for value in values]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with sys.modules["torch"].no_grad():
            for value, saved in zip(values, copies, strict=True):
                value.copy_(saved)
