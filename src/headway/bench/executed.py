"""What a call really executed, according to the profiler or the compiled program."""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

ATTENTION = {  # PyTorch's attention operations and their usual names
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash (CPU)",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_native_multi_head_attention": "native multi-head",
}
PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm")


class Executed(NamedTuple):
    """What was executed, and whether a compiler generated some of it."""

    name: str
    compiled: bool


def by_torch(work: Callable[[], object], cuda: bool = False) -> Executed:
    """Name the attention operation; otherwise custom functions and kernels; otherwise the matrix
    products. work: must have run before, because a first call executes other operations too."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        work()
    events = list(profiler.events() or ())
    on_gpu = Counter(event.name for event in events if event.device_type.name == "CUDA")
    names = Counter(event.name for event in events if event.device_type.name == "CPU")
    inductor = any("CompiledFxGraph" in name for name in names)
    triton = [name for name in on_gpu if is_of_triton(name)]
    parts = [word for name, word in ATTENTION.items() if name in names]
    parts = parts or [name for name in names if _is_function(name)] or triton
    products = [
        _times(names[name], name.removeprefix("aten::")) for name in PRODUCTS if names[name]
    ]
    parts = parts or products
    fused = sum(count for name, count in (names + on_gpu).items() if _is_fused(name))
    if fused:
        parts.append(f"{fused} fused")
    name = " + ".join(parts) or "no known operation"
    return Executed(f"compiled: {name}" if inductor else name, inductor or bool(triton))


def by_xla(program: str) -> Executed:
    """Name the products, fused loops and custom calls of a compiled program (HLO)."""
    parts = [*dict.fromkeys(re.findall(r'custom_call_target="([^"]+)"', program))]
    for pattern, name in ((" dot(", "dot"), (" fusion(", "fused")):
        if pattern in program:
            parts.append(_times(program.count(pattern), name))
    return Executed(f"XLA: {' + '.join(parts) or 'no known operation'}", compiled=True)


def _times(count: int, name: str) -> str:
    return name if count == 1 else f"{count} {name}"


def is_of_triton(name: str) -> bool:
    """Whether a GPU kernel was written in Triton: it has the name of the Python function.

    Names of C++ kernels contain brackets or colons, except the matrix products of the libraries.
    """
    return name.isidentifier() and not _is_fused(name) and not _LIBRARY.match(name)


_LIBRARY = re.compile(r"sm\d+_|(volta|turing|ampere|hopper|blackwell|cutlass|nvjet|cudnn|xmma)_?")


def _is_fused(name: str) -> bool:
    """Whether TorchInductor generated this loop."""
    return "cpp_fused" in name or name.startswith("triton_")


def _is_function(name: str) -> bool:
    """Whether this is a custom autograd Function, which the profiler lists by its class."""
    return name.isidentifier() and name[:1].isupper() and name not in _INTERNAL


_INTERNAL = ("CompiledFunction", "PythonDispatchMode")
