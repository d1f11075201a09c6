"""Record the operations of any PyTorch module, and replace the result of one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

import headway

# Operations whose result has the same numbers in another layout.
LAYOUT = {
    *("view", "_unsafe_view", "transpose", "permute", "t", "unsqueeze", "squeeze", "alias"),
    *("expand", "reshape", "_reshape_alias", "detach", "lift_fresh", "clone", "unflatten"),
    "view_as_complex",
}


PRODUCTS = {"bmm", "mm", "addmm", "baddbmm"}
Place = int | tuple[int, int]  # an operation's result, or what it reads: (operation, argument)


class Operation(NamedTuple):
    """The result of an operation, and where it was computed.

    name: of the operation. module: the path of the innermost module. line, function: of the user's
    code.
    inputs: the operations that computed its arguments; -1 for other tensors. shapes: of its
    arguments. operands: the arguments themselves, of a matrix product.
    """

    name: str
    module: str
    line: str
    function: str
    value: Tensor
    inputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    operands: tuple[Tensor, ...]

    @property
    def place(self) -> str:
        """A short description of where it is."""
        where = f" ({self.line})" if self.line else ""
        return f"{self.name} in {self.module or 'the model'}{where}"


@torch.no_grad()
def record(
    model: nn.Module,
    run: Callable[[], Any],
    replaced: Mapping[Place, Tensor] | None = None,
    last: int | None = None,
    before: Sequence[Operation] = (),
) -> list[Operation]:
    """Call `run` and return the model's operations, in order; the last one is what it returned.

    replaced: new values of results, or of what an operation reads. last: stop after this operation.
    before: the first operations of a run in which they were the same; the matrix products among
    them are not computed again. Raises Interrupted if the model raises an error.
    """
    recorder = _Recorder(model, replaced or {}, last, before)
    try:
        with recorder.modules_of(model), sdpa_kernel(SDPBackend.MATH):
            with recorder:
                output = run()
            recorder.finish(output)
    except _Stop:
        pass
    except NoLogits:
        raise
    except (Exception, SystemExit) as error:
        raise Interrupted(error, recorder.operations) from error
    return recorder.operations


class NoLogits(ValueError):  # noqa: N818 - clear without the suffix Error
    """A model returned something else."""


@final
class Interrupted(Exception):  # noqa: N818 - not only an error, it has results
    """A model raised an error; `done` is what it had computed before."""

    def __init__(self, error: BaseException, done: Any) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.done = done


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned. Raises NoLogits if there are none."""
    value = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    value = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(value, Tensor) or value.ndim != 3 or not value.is_floating_point():
        what = type(output).__name__
        if isinstance(value, Tensor):
            what = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        expected = "floating-point numbers (batch, tokens, vocabulary)"
        raise NoLogits(f"the model returned {what}; expected logits, {expected}")
    return value


class _Stop(BaseException):  # not caught by the code of a model
    pass


@final
class _Recorder(TorchDispatchMode):
    def __init__(
        self,
        model: nn.Module,
        replaced: Mapping[Place, Tensor],
        last: int | None,
        before: Sequence[Operation],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self._replaced, self._last, self._before = replaced, last, before
        self._weights = {x.untyped_storage().data_ptr() for x in model.parameters()}
        self._readers = {key[0] for key in replaced if isinstance(key, tuple)}
        self._modules = [""]
        self._makers: dict[int, int] = {}  # id of a tensor -> the number of its operation
        self._alive: list[Any] = []  # so that no id is used twice

    @contextmanager
    def modules_of(self, model: nn.Module) -> Iterator[None]:
        """Know which module runs, until exit."""
        with ExitStack() as stack:
            for path, module in model.named_modules():
                enter = module.register_forward_pre_hook(
                    lambda *_, path=path: self._modules.append(path)
                )
                leave = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            yield

    def _leave(self, *_: Any) -> None:
        self._modules.pop()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = function._schema.name.partition("::")[2]
        read, tree = tree_flatten((arguments, options))
        if len(self.operations) in self._readers and name in PRODUCTS:
            read = self._as_read(read)
            arguments, options = tree_unflatten(read, tree)
        tensors = [x for x in read if isinstance(x, Tensor)]
        inputs = [self._makers.get(id(x), -1) for x in tensors]
        kept = tuple(map(self._kept, tensors)) if name in PRODUCTS else ()
        if kept and len(self.operations) < len(self._before):
            result: Any = self._before[len(self.operations)].value.clone()
        else:
            result = function(*arguments, **(options or {}))
        if name in LAYOUT:
            if isinstance(result, Tensor) and inputs:
                self._note(result, inputs[0])
            return result
        about = tuple(inputs), tuple(tuple(x.shape) for x in tensors), kept
        outputs, spec = tree_flatten(result)
        for index, output in enumerate(outputs):
            if isinstance(output, Tensor) and output.is_complex() and inputs:
                self._note(output, inputs[0])
            if isinstance(output, Tensor) and output.is_floating_point() and output.ndim:
                outputs[index] = self._add(name, output, about, function._schema.is_mutable)
        return tree_unflatten(outputs, spec)

    def finish(self, output: Any) -> None:
        """Record what the model returned."""
        value = logits_of(output)
        about = (self._makers.get(id(value), -1),), (tuple(value.shape),), ()
        self.operations.append(Operation("output", "", "", "", value.clone(), *about))

    def _add(self, name: str, value: Tensor, about: Any, in_place: bool) -> Tensor:
        number = len(self.operations)
        if number in self._replaced:
            new = self._replaced[number].to(value).reshape(value.shape).clone()
            value = value.copy_(new) if in_place else new
        where = Operation(name, self._modules[-1], *_line(), value.clone(), *about)
        self.operations.append(where)
        self._note(value, number)
        if number == self._last:
            raise _Stop
        return value

    def _as_read(self, read: list[Any]) -> list[Any]:
        """The arguments of the next operation, some of them replaced."""
        number, count = len(self.operations), -1
        changed = []
        for x in read:
            if isinstance(x, Tensor):
                count += 1
                new = self._replaced.get((number, count))
                x = x if new is None else new.to(x).reshape(x.shape)
            changed.append(x)
        return changed

    def _kept(self, x: Tensor) -> Tensor:
        """A copy, because the model may change it in place; weights may be large."""
        return x if x.untyped_storage().data_ptr() in self._weights else x.clone()

    def _note(self, value: Tensor, number: int) -> None:
        self._makers[id(value)] = number
        self._alive.append(value)


_OURS, _TORCH = (f"{Path(file).parent}{os.sep}" for file in (headway.__file__, torch.__file__))


def _line() -> tuple[str, str]:
    """The innermost line of code outside of PyTorch and Headway, and its function."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        if not file.startswith((_OURS, _TORCH)):
            return f"{Path(file).name}:{frame.f_lineno}", code.co_qualname
        frame = frame.f_back  # type: ignore[assignment]
    return "", ""
