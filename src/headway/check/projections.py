"""The projections of a module of PyTorch, whose outputs can be replaced.

A projection is a product of a tensor that depends on the input with one that does not. Operations
are seen below autograd, so that it does not matter how a product is written: as a layer, `x @ W` or
`einsum`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headway.check.errors import Refused
from headway.check.subject import Subject

aten = torch.ops.aten
# Which arguments are the factors.
PRODUCTS = {
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.linear.default: (0, 1),
}


@dataclass(frozen=True)
class Projection:
    """What a projection read and returned, (batch, tokens, features), and its parameter's name."""

    name: str
    read: np.ndarray
    output: np.ndarray


@dataclass(frozen=True)
class Run:
    """The output of a module for one input, and its projections in order."""

    output: np.ndarray
    projections: list[Projection]


def run(
    subject: Subject,
    x: np.ndarray,
    replaced: Mapping[int, np.ndarray] = MappingProxyType({}),
    *,
    token_major: bool = False,
    train: bool = False,
    **options: Any,
) -> Run:
    """Run a module of kind "self" with new outputs for some projections, by their numbers.

    x: (batch, tokens, width), with different numbers of batch rows and tokens.
    Raises `Refused` if an array has no axes of this batch and these tokens.
    """
    inputs = subject.native([x], subject.dtype)
    module = subject.attention_in(subject.dtype)
    names = {_memory(tensor): name for name, tensor in module.named_parameters()}
    batch, tokens = x.shape[:2]

    def replace(number: int, output: Tensor) -> Tensor:
        if number not in replaced:
            return output
        native, ours = _pattern(output.shape, batch, tokens, token_major)
        sizes = {"f": output.shape[-1]} | ({"t": tokens} if "t" in native else {})
        values = rearrange(replaced[number], f"{ours} -> {native}", **sizes)
        return torch.tensor(values, dtype=output.dtype, device=output.device)

    def canonical(tensor: Tensor) -> np.ndarray:
        native, ours = _pattern(tensor.shape, batch, tokens, token_major)
        return np.asarray(rearrange(subject.library.numpy(tensor), f"{native} -> {ours}", t=tokens))

    with _without_fast_path(), _Watch(inputs, names, replace) as watch:
        native_options = subject.native_options(options)
        output = subject.output(inputs, native_options, subject.dtype, train)
    arrays = [
        Projection(name, canonical(read), canonical(output))
        for name, read, output in watch.projections
    ]
    return Run(subject.canonical(output), arrays)


class _Watch(TorchDispatchMode):
    """Record the name, the input and the output of each projection.

    replace: called with the number and the output of a projection; its result is used instead.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        names: Mapping[int, str],
        replace: Callable[[int, Tensor], Tensor],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.projections: list[tuple[str, Tensor, Tensor]] = []
        self._names, self._replace = dict(names), replace
        self._kept = [*inputs]  # all tensors, so that none gets the memory of an earlier one
        self._dependent = {_memory(tensor) for tensor in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func in PRODUCTS:
            factors = [args[i] for i in PRODUCTS[func]]
            read = [tensor for tensor in factors if _memory(tensor) in self._dependent]
            if len(read) == 1:
                name = next((self._name(tensor) for tensor in factors if tensor is not read[0]), "")
                result = self._project(name, read[0], result)
        elif func is aten.add.Tensor and self.projections:
            name, earlier, output = self.projections[-1]
            is_bias = [tensor.ndim == 1 for tensor in given]
            if True in is_bias and any(_memory(t) == _memory(output) for t in given):
                self.projections.pop()
                result = self._project(name, earlier, result)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._kept += outputs
        if any(_memory(tensor) in self._dependent for tensor in given):
            self._dependent |= {_memory(tensor) for tensor in outputs}
        elif name := next(filter(None, map(self._name, given)), ""):
            for tensor in outputs:
                self._names.setdefault(_memory(tensor), name)
        return result

    def _name(self, tensor: Tensor) -> str:
        return self._names.get(_memory(tensor), "")

    def _project(self, name: str, read: Tensor, output: Tensor) -> Tensor:
        output = self._replace(len(self.projections), output)
        self.projections.append((name, read, output))
        return output


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Let `nn.MultiheadAttention` call separate operations."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _pattern(shape: Sequence[int], batch: int, tokens: int, token_major: bool) -> tuple[str, str]:
    """Return the axes of a projection in the notation of einops: as they are, and in our order.

    token_major: whether a flat axis of all rows begins with the batch rows of one token.
    Raises `Refused` for other shapes.
    """
    rows = "(t b)" if token_major else "(b t)"
    match [*shape]:
        case [n, _] if n == batch * tokens:
            return f"{rows} f", "b t f"
        case [n, m, _] if (n, m) == (batch, tokens):
            return "b t f", "b t f"
        case [n, m, _] if (n, m) == (tokens, batch):
            return "t b f", "b t f"
        case [_, m, _] if m == batch * tokens:
            return f"h {rows} f", "b t (h f)"
        case [n, m, _] if n % batch == 0 and m == tokens:
            return "(b h) t f", "b t (h f)"
    raise Refused(f"has a projection of shape {tuple(shape)}, without axes of batch and tokens")
