"""What really ran: named by the profiler, or by the compiled program, never by the caller."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

ATTENTION = {  # PyTorch's operations that attend, and their usual names
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash (CPU)",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_native_multi_head_attention": "native multi-head",
}
PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm")


class Executed(NamedTuple):
    """What ran, and whether a compiler made some of it."""

    name: str
    compiled: bool


def by_torch(work: Callable[[], object], cuda: bool = False) -> Executed:
    """An attention operation if there is one; else functions and kernels of somebody's own; else
    the products. work: what has run before, for the first call runs other things too."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        work()
    events = list(profiler.events() or ())
    on_gpu = Counter(each.name for each in events if each.device_type.name == "CUDA")
    names = Counter(each.name for each in events if each.device_type.name == "CPU")
    inductor = any("CompiledFxGraph" in name for name in names)
    theirs = [name for name in on_gpu if is_of_triton(name)]
    said = [word for name, word in ATTENTION.items() if name in names]
    said = said or [name for name in names if _is_function(name)] or theirs
    if not said:
        said = [
            _times(names[name], name.removeprefix("aten::")) for name in PRODUCTS if names[name]
        ]
    fused = sum(count for name, count in (names + on_gpu).items() if _is_fused(name))
    if fused:
        said.append(f"{fused} fused")
    name = " + ".join(said) or "no known operation"
    return Executed(f"compiled: {name}" if inductor else name, inductor or bool(theirs))


def by_xla(program: str) -> Executed:
    """The products, fused loops and foreign calls of a compiled program (HLO)."""
    return Executed(f"XLA: {' + '.join(_of_xla(program)) or 'no known operation'}", compiled=True)


def _of_xla(program: str) -> Iterator[str]:
    yield from dict.fromkeys(re.findall(r'custom_call_target="([^"]+)"', program))
    for word, said in ((" dot(", "dot"), (" fusion(", "fused")):
        if word in program:
            yield _times(program.count(word), said)


def _times(count: int, name: str) -> str:
    return name if count == 1 else f"{count} {name}"


def is_of_triton(name: str) -> bool:
    """A kernel on the GPU that Triton compiled for somebody: it bears the name of their function.

    Those of C++ have brackets or colons in theirs, but for the matrix products of the libraries.
    """
    return name.isidentifier() and not _is_fused(name) and not _LIBRARY.match(name)


_LIBRARY = re.compile(r"sm\d+_|(volta|turing|ampere|hopper|blackwell|cutlass|nvjet|cudnn|xmma)_?")


def _is_fused(name: str) -> bool:
    """A loop that TorchInductor wrote."""
    return "cpp_fused" in name or name.startswith("triton_")


def _is_function(name: str) -> bool:
    """An autograd Function of somebody's, which the profiler knows by its class."""
    return name.isidentifier() and name[:1].isupper() and name not in _NOT_THEIRS


_NOT_THEIRS = ("CompiledFunction", "PythonDispatchMode")
