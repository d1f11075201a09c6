"""Forward hooks that tap the residual stream, the MLPs and the logits of a watched model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, final
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headway.hf.structure import Attention, Block, Stack, is_norm, structure
from headway.tracing import tap


@final
class Hooks:
    """The hooks of one model. They exist only while `attach(True)`, because each takes time.

    names: the name of each module that calls attention; the path of any other module.
    contexts: while a trace or an edit is open, what attention returned to a module that has not
        returned yet.
    """

    def __init__(self, model: nn.Module) -> None:
        parts = structure(model)
        self.names = WeakKeyDictionary({module: path for path, module in model.named_modules()})
        self.names.update({part.module: part.name for part in parts.attentions})
        self.contexts: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
        self._without_projection: WeakSet[nn.Module] = WeakSet()
        self._registrations: list[Callable[[], RemovableHandle]] = []
        self._handles: list[RemovableHandle] = []
        for attention in parts.attentions:
            self._after(attention.module, partial(self._output, attention))
            if attention.projection is not None:
                self._after(attention.projection, partial(self._projected, attention))
        for stack in parts.stacks:
            _StackHooks(stack, self._before, self._after)
        self._after(model, _logits)

    def attach(self, is_open: bool) -> None:
        """Add all hooks, or remove them; is_open: whether a trace or an edit is open."""
        for handle in self._handles:
            handle.remove()
        self._handles = [register() for register in self._registrations] if is_open else []

    def _before(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        """Let `change` see and replace the first input of a module."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            name = None if args else _first_tensor(kwargs)
            value = args[0] if args else kwargs.get(name)
            if not isinstance(value, Tensor):
                return None
            new = change(value)
            if new is value:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

        self._registrations.append(
            partial(module.register_forward_pre_hook, hook, with_kwargs=True)
        )

    def _after(self, module: nn.Module, change: Callable[[Any], Any]) -> None:
        """Let `change` see and replace the output of a module."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            new = change(output)
            return None if new is output else new

        self._registrations.append(partial(module.register_forward_hook, hook))

    def _output(self, attention: Attention, output: Any) -> Any:
        """Tap the output of an attention, unless it is the context itself."""
        value, context = _main(output), self.contexts.pop(attention.module, None)
        if value is None or context is None:
            return output
        if _is_same_memory(value, context):
            self._without_projection.add(attention.module)
            return output
        return _with_main(output, tap(f"{attention.name}.output", value))

    def _projected(self, attention: Attention, output: Any) -> Any:
        """Tap the output of a projection after an attention that returned its context."""
        if attention.module not in self._without_projection:
            return output
        self._without_projection.remove(attention.module)
        return _with_main(output, tap(f"{attention.name}.output", _main(output)))


@final
class _StackHooks:
    """The hooks of one stack of blocks, and the tensors that they compare."""

    def __init__(self, stack: Stack, before: Any, after: Any) -> None:
        self.prefix = stack.prefix
        self.last: Callable[[], Tensor | None] = lambda: None  # the output of the last block
        for index, block in enumerate(stack.blocks):
            inside = _BlockHooks(block)
            before(block.module, partial(self._enter, index, inside))
            for child in block.children:
                if block.attentions:
                    before(child, partial(inside.before, child))
                    after(child, partial(inside.after, child))
            if block.mlp is not None:
                after(block.mlp, partial(_tapped, f"{block.name}.mlp.output"))
            after(block.module, partial(self._leave, inside))
        for child in stack.owner.children():
            if is_norm(child):
                before(child, self._before_norm)
                after(child, self._after_norm)
        self._is_final = False

    def _enter(self, index: int, block: _BlockHooks, stream: Tensor) -> Tensor:
        if index == 0 and stream is not self.last():  # a block that is shared runs several times
            stream = tap(f"{self.prefix}embedded", stream)
        block.enter(stream)
        return stream

    def _leave(self, block: _BlockHooks, output: Any) -> Any:
        block.leave()
        output = _tapped(f"{block.name}.after_mlp", output)
        stream = _main(output)
        self.last = weakref.ref(stream) if stream is not None else lambda: None
        return output

    def _before_norm(self, stream: Tensor) -> Tensor:
        self._is_final = stream is self.last()
        return stream

    def _after_norm(self, output: Any) -> Any:
        return _tapped(f"{self.prefix}final_norm", output) if self._is_final else output


@final
class _BlockHooks:
    """Finds the residual stream after each attention of a block, while the block runs.

    It is the first tensor that a child gets after an attention, if no child returned it and if it
    equals the stream before plus a multiple of the last update. In post-norm blocks the input of
    the attention is the stream itself; there the sum is normalized first, and is not the stream.
    """

    def __init__(self, block: Block) -> None:
        self.name, self.attentions = block.name, block.attentions
        self.leave()

    def enter(self, stream: Tensor) -> None:
        self.stream: Tensor | None = stream
        self.seen: list[Tensor] = []  # what the children returned
        self.waiting: str | None = None  # the name of the stream that comes next

    def leave(self) -> None:
        self.stream, self.seen, self.waiting = None, [], None

    def before(self, child: nn.Module, value: Tensor) -> Tensor:
        if self.stream is None:
            return value
        is_returned = any(value is other for other in self.seen)
        if child in self.attentions:
            self.is_pre_norm = is_returned
        elif self.waiting is not None and not is_returned and value is not self.stream:
            # OPT merges the axes of the batch and of the tokens here.
            stream = value.reshape(self.stream.shape) if _fits(value, self.stream) else value
            if _is_sum(stream, self.stream, self.seen[-1]):
                new = tap(f"{self.name}.{self.waiting}", stream)
                if new is not stream:  # in place, because the block adds the MLP to this tensor
                    stream.copy_(new)
                self.stream, self.waiting = stream, None
        return value

    def after(self, child: nn.Module, output: Any) -> Any:
        value = _main(output)
        if value is not None:
            self.seen.append(value)
        if child in self.attentions:
            self.waiting = self.attentions[child] if self.is_pre_norm else None
        return output


def _fits(value: Tensor, stream: Tensor) -> bool:
    return value.numel() == stream.numel() and value.shape[-1] == stream.shape[-1]


def _is_sum(value: Tensor, stream: Tensor, update: Tensor) -> bool:
    """Whether value = stream + c * update, for some number c and up to rounding."""
    if not value.shape == stream.shape == update.shape:
        return False
    eps = torch.finfo(value.dtype).eps
    with torch.no_grad():
        value, stream, update = (x.detach().double() for x in (value, stream, update))
        change = value - stream
        factor = (change * update).sum() / (update * update).sum().clamp(min=1e-300)
        rest = (change - factor * update).norm()
    return not rest > 1e-2 * change.norm() + 2 * eps * value.norm()  # True for NaN


def _logits(output: Any) -> Any:
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        new = tap("logits", logits)
        if new is not logits:
            output.logits = new
    return output


def _first_tensor(kwargs: dict[str, Any]) -> str | None:
    return next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)


def _tapped(name: str, output: Any) -> Any:
    value = _main(output)
    return output if value is None else _with_main(output, tap(name, value))


def _main(output: Any) -> Tensor | None:
    """The tensor that a module returned, or the first of several."""
    value = output[0] if isinstance(output, tuple) and output else output
    return value if isinstance(value, Tensor) else None


def _with_main(output: Any, new: Any) -> Any:
    if isinstance(output, tuple):
        return output if new is output[0] else (new, *output[1:])
    return new


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
