"""Compile a function of tensors ahead of time for a CPU, and keep it in Headway's cache folder.

Compiling takes about 20 seconds; loading the result in another process takes a hundredth of one.
"""

from __future__ import annotations

import hashlib
import platform
import textwrap
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from headway import cache
from headway.torch.devices import missing_for_compiling

# The weights are not stored in the file, but are those of the model, and the code uses as many
# threads as PyTorch does when it runs.
_SETTINGS = {
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,
    "cpp.dynamic_threads": True,
}

_lock = threading.RLock()  # the compiler and a loaded file serve one thread at a time
_loaded: dict[Path, _Loaded] = {}


def compiled(
    module: nn.Module, inputs: Sequence[Tensor], dynamic: Any, *, may_compile: bool, stacklevel: int
) -> Callable[..., Tensor] | None:
    """Return the compiled module, or None if there is none.

    inputs: examples. dynamic: which of their sizes may differ, as `dynamic_shapes` of
    `torch.export.export`. may_compile: compile it if it is not in the cache folder; says so, and
    warns if this fails. stacklevel: that of the warnings. The module runs once without being
    compiled, because the name of the file is a hash of its operations.
    """
    parameters = {name: p.detach() for name, p in module.state_dict(keep_vars=True).items()}
    if may_compile and (missing := missing_for_compiling("cpu")):
        note = f"text is generated without compiling, which needs {missing}"
        warnings.warn(note, stacklevel=stacklevel)
        may_compile = False
    find = cache.writable if may_compile else cache.path
    try:
        with torch.no_grad(), _lock:
            file = find("torch", f"{_identity(module, inputs, dynamic)}.pt2")
            if not file.exists():
                if not may_compile:
                    return None
                note = "each step is compiled first, which takes about 20 seconds; the code is kept"
                warnings.warn(note, stacklevel=stacklevel)
                _compile(module, inputs, dynamic, file)
            if file not in _loaded:
                _loaded[file] = _Loaded(file)
            return partial(_loaded[file].run, _Constants(parameters))
    except Exception as error:  # the compiler's errors have no common class
        if may_compile:
            reason = textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__
            note = f"text is generated without compiling: {reason}"
            warnings.warn(note, stacklevel=stacklevel)
        return None


class _Constants(dict[str, Tensor]):
    """The parameters of a model by name; unlike a dict, it can be referenced weakly."""


@final
class _Loaded:
    """A file of compiled code. It stays loaded, because PyTorch never frees such code.

    Raises RuntimeError, and deletes the file, if it is damaged.
    """

    def __init__(self, file: Path) -> None:
        try:
            # torch._inductor.aoti_load_package does this too, but imports the compiler for a second
            self._loader = torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)
        except RuntimeError:
            file.unlink()
            raise
        self._names = self._loader.get_constant_fqns()
        self._owner: Callable[[], _Constants | None] = lambda: None

    def run(self, constants: _Constants, *inputs: Tensor) -> Tensor:
        """Run the code with the parameters of one model, which are not copied."""
        with _lock:
            if self._owner() is not constants:
                used = {name: constants[name] for name in self._names}
                self._loader.load_constants(used, False, True, True)
                self._owner = weakref.ref(constants)
            output: Tensor = self._loader.run([*inputs])[0]
            return output


def _compile(module: nn.Module, inputs: Sequence[Tensor], dynamic: Any, file: Path) -> None:
    with warnings.catch_warnings(action="ignore"), cache.atomic(file) as temporary:
        program = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic, strict=False)
        program = program.run_decompositions({torch.ops.aten.linear.default: _linear})
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(temporary), inductor_configs={**_SETTINGS}
        )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer of one row as a product and a sum, which read the weights faster than MKL.

    On an AMD processor MKL reads 17 GB/s, this 50 GB/s, as fast as the memory.
    """
    y = (x.reshape(-1) * weight).sum(-1)
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], -1)


def _identity(module: nn.Module, inputs: Sequence[Tensor], dynamic: Any) -> str:
    """A hash of the operations of the module with these inputs, the machine, and this file."""
    operations = _Operations(module, inputs)
    operations.hash.update(f"{dynamic}".encode())
    with operations:
        module(*inputs)
    return operations.hash.hexdigest()


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A hash of the operations that run, with their arguments, the machine, and this file."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        processor = torch.backends.cpu.get_cpu_capability()
        machine = torch.__version__, platform.node(), processor
        self.hash = hashlib.sha256(f"{machine}".encode() + Path(__file__).read_bytes())
        # In memory until the end, so that each has its own id.
        self._tensors = [*module.state_dict(keep_vars=True).values(), *inputs]
        self._numbers = {id(x): number for number, x in enumerate(self._tensors)}
        for x in self._tensors:
            self.hash.update(f"{x.dtype} {x.shape} {x.stride()}".encode())

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import the compiler, which takes a second

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        described = tree_map(self._described, (arguments, options))
        self.hash.update(f"{function} {described}".encode())
        result = function(*arguments, **(options or {}))
        tree_map(self._add, result)
        return result

    def _described(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) not in self._numbers:  # a constant
            self._add(x)
            return x.dtype, x.tolist()
        return self._numbers[id(x)]

    def _add(self, x: Any) -> None:
        if isinstance(x, Tensor):
            self._numbers.setdefault(id(x), len(self._tensors))
            self._tensors.append(x)
