"""The parts of a module of PyTorch: in which one a leak of later tokens begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from headway.check.subject import Subject


def first_leak(subject: Subject) -> tuple[str, Any] | None:
    """Return the first part whose output depends on later tokens while its inputs do not.

    Parts are the module and its submodules, the inner ones first, each with its name.
    """
    tokens = subject.few_tokens
    inputs = subject.inputs(tokens)
    changed = subject.changed(inputs, [tokens - 1])
    module = subject.attention_in(subject.dtype)
    calls = [_calls(subject, module, arrays) for arrays in (inputs, changed)]
    for before, after in zip(*calls, strict=False):
        leaks = [
            any(
                a.shape == b.shape
                and a.ndim > 2
                and a.shape[:2] == (len(inputs[0]), tokens)
                and (a - b)[:, :-1].abs().max() > subject.noise * a.abs().max()
                for a, b in zip(before[side], after[side], strict=False)
            )
            for side in (1, 2)
        ]
        if leaks == [False, True]:
            return before[0], dict(module.named_modules())[before[0]]
    return None


def _calls(
    subject: Subject, module: Any, inputs: Sequence[np.ndarray]
) -> list[tuple[str, list[Tensor], list[Tensor]]]:
    """Return the name, the input tensors and the output tensors of each call of a part."""
    calls: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def hook(name: str) -> Callable[..., None]:
        def record(part: Any, args: Any, kwargs: Any, output: Any) -> None:
            inputs, outputs = (
                [leaf.clone() for leaf in tree_leaves(side) if isinstance(leaf, Tensor)]
                for side in ((args, kwargs), output)
            )
            calls.append((name, inputs, outputs))

        return record

    handles = [
        part.register_forward_hook(hook(name), with_kwargs=True)
        for name, part in module.named_modules()
    ]
    try:
        subject.run(inputs, **subject.causal_options)
    finally:
        for handle in handles:
            handle.remove()
    return calls
