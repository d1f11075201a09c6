"""Derivatives of a `Subject` with respect to its inputs, or to the embeddings of a model."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from headway.check.errors import Refused, errors_as_refused
from headway.check.layouts import from_layout, to_layout
from headway.check.subject import Subject


def variables(subject: Subject, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the variables of the derivatives: the inputs or, for a model, an embedding shift."""
    if subject.kind != "model":
        return [*inputs]
    embedding = _embedding(subject, subject.dtype)
    return [np.zeros((*inputs[0].shape, embedding.embedding_dim))]


def unit(subject: Subject) -> float:
    """Return the typical size of a variable."""
    if subject.kind != "model":
        return 1.0
    weight = _embedding(subject, subject.dtype).weight
    return float(subject.library.numpy(weight).std())


def output_at(
    subject: Subject, inputs: Sequence[np.ndarray], values: Sequence[np.ndarray], **options: Any
) -> np.ndarray:
    """Return the output for other values of the variables."""
    function = _function(subject, inputs, subject.dtype, options)
    output = function(*subject.native(values, subject.dtype))
    return subject.canonical(output)


def gradients(
    subject: Subject,
    inputs: Sequence[np.ndarray],
    weight: np.ndarray,
    *,
    dtype: str | None = None,
    **options: Any,
) -> list[np.ndarray]:
    """Return the gradients of sum(output * weight) with respect to the variables.

    weight: has the shape of the output. Raises `Refused` if the library has no gradients.
    """
    dtype = dtype or subject.dtype
    function = _function(subject, inputs, dtype, options)
    native = subject.native(variables(subject, inputs), dtype)
    (weight,) = to_layout(subject.declared, [weight])
    with errors_as_refused():
        slopes = subject.library.gradients(function, native, weight)
    arrays = map(subject.library.numpy, slopes)
    heads = subject.head_counts if subject.kind == "qkv" else (1,)
    return [*map(partial(from_layout, subject.declared), arrays, heads)]


class Unused(NamedTuple):
    """A parameter without a gradient, or a part of one: its name and its slices."""

    name: str
    slices: tuple[slice, ...] = ()

    def __str__(self) -> str:
        parts = (f"{part.start}:{part.stop}" if part.stop else ":" for part in self.slices)
        return f"{self.name}[{', '.join(parts)}]" if self.slices else self.name


def unused_parameters(subject: Subject) -> tuple[int, list[Unused]]:
    """Return the number of trainable parameters, and those without a gradient.

    Of the matrices of projections, also blocks of rows or columns: in a fused one, for example the
    part of the values may have no gradient.
    """
    module = subject.attention_in(subject.dtype)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    native = subject.native(subject.inputs(4), subject.dtype)
    torch = sys.modules["torch"]
    with torch.enable_grad():
        output = subject.output(native, subject.native_options(subject.causal_options))
        if not output.requires_grad:
            return len(parameters), [*map(Unused, parameters)]
        # Not the plain sum: it is constant after a softmax over the queries, or after a norm.
        weight = torch.arange(output.numel(), device=output.device).cos().view_as(output)
        total = (output * weight).sum()
        slopes = torch.autograd.grad(total, [*parameters.values()], allow_unused=True)
    unused, projections = [], _projections(subject)
    for name, slope in zip(parameters, slopes, strict=True):
        if slope is None:
            unused.append(Unused(name))
        elif name in projections and slope.ndim == 2:
            for axis in (0, 1):
                dead = (slope == 0).all(1 - axis).nonzero().ravel()
                if len(dead) >= max(8, slope.shape[axis] // 4):
                    part = slice(int(dead[0]), int(dead[-1]) + 1)
                    unused.append(Unused(name, (part,) if axis == 0 else (slice(None), part)))
    return len(parameters), unused


def _projections(subject: Subject) -> set[str]:
    """Return the names of the matrices that inputs are multiplied with; {} if they are not found.

    In a block or a model a part may have no gradient by design, because of a ReLU or of experts.
    """
    if subject.kind != "self" or subject.declared.block:
        return set()
    from headway.check import projections

    (x,) = subject.inputs(5)
    try:
        return {p.name for p in projections.run(subject, x, **subject.causal_options).projections}
    except Refused:
        return set()


def has_influence(subject: Subject, unused: Sequence[Unused]) -> bool:
    """Whether the output of a module changes with one of these parameters."""
    parameters = dict(subject.attention_in(subject.dtype).named_parameters())
    inputs = subject.inputs(4)
    before = subject.run(inputs, **subject.causal_options)
    for part in unused:
        data = parameters[part.name].data[part.slices]
        saved = data.clone()
        data.mul_(1.5).add_(0.1)
        after = subject.run(inputs, **subject.causal_options)
        data.copy_(saved)
        if not np.array_equal(before, after):
            return True
    return False


def _function(
    subject: Subject, inputs: Sequence[np.ndarray], dtype: str, options: dict[str, Any]
) -> Callable[..., Any]:
    """Return a function from the variables to the output, both arrays of the library."""
    native_options = subject.native_options(options)
    if subject.kind != "model":
        return lambda *values: subject.output(values, native_options, dtype)
    tokens = subject.native(inputs, dtype)
    embedding = _embedding(subject, dtype)

    def shifted(shift: Any) -> Any:
        handle = embedding.register_forward_hook(lambda module, args, output: output + shift)
        try:
            return subject.output(tokens, native_options, dtype)
        finally:
            handle.remove()

    return shifted


def _embedding(subject: Subject, dtype: str) -> Any:
    """Find the embedding that is called with the tokens of the model in this precision."""
    inputs = subject.inputs(4, batch=1)
    modules = subject.attention_in(dtype).modules() if subject.module is not None else ()
    tables = [module for module in modules if hasattr(module, "num_embeddings")]
    called = []

    def record(table: Any, args: Any, output: Any) -> None:
        if np.array_equal(subject.library.numpy(args[0]), inputs[0]):
            called.append(table)

    handles = [table.register_forward_hook(record) for table in tables]
    try:
        subject.output(subject.native(inputs, dtype), {}, dtype)
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise Refused("has no gradients: no nn.Embedding is called with the tokens")
    return called[0]
