"""A script for test_triton.py: compile the kernels with Triton for GPUs that are not present."""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from headway.attention.kernels import triton_flash

SHARED = 99 * 1024  # bytes that a block may have on the smaller cards (GeForce 30 and 40)


class Absent:
    """A driver of Triton for a GPU (A100) that is not present."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)


made = []
run = JITFunction.run


def compile_only(self, *inputs, grid, warmup, **options):
    made.append(run(self, *inputs, grid=grid, warmup=True, **options))


JITFunction.run = compile_only


def kernels(dtype: torch.dtype, dim: int, softcap: float | None, rate: float) -> None:
    """Compile all kernels by calling the operators."""
    made.clear()
    shapes = [(2, 6, 40, dim), (2, 3, 48, dim), (2, 3, 48, dim)]
    leaves = [torch.zeros(s, dtype=dtype, requires_grad=True) for s in shapes]
    seed = torch.zeros(1, dtype=torch.int32) if rate else None
    context, *_ = triton_flash.flash(*leaves, seed, [0, 40, 8, 0], dim**-0.5, softcap, rate)
    context.sum().backward()
    assert {kernel.name for kernel in made} == {"_forward", "_backward_queries", "_backward_keys"}
    assert len(made) == (4 if dtype == torch.float32 else 3)
    for kernel in made:
        details = (kernel.name, dtype, dim, kernel.metadata.shared)
        assert kernel.metadata.shared <= SHARED, details
        uses_tensor_cores = "mma.sync" in kernel.asm["ptx"]
        assert uses_tensor_cores == (dtype != torch.float32), details


def one() -> None:
    """Small blocks, which compile quickly; dim is not a power of 2."""
    triton_flash.blocks = lambda dim, size: [(16, 32), (32, 16)]
    kernels(torch.bfloat16, 20, 2.0, 0.1)


def table() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for dim in (64, 128, 256):
            kernels(dtype, dim, None, 0.0)
            kernels(dtype, dim, 2.0, 0.1)
            # The next block is loaded while the current one is computed.
            assert all("cp.async" in kernel.asm["ptx"] for kernel in made)


triton.runtime.driver.set_active(Absent())
{"one": one, "table": table}[sys.argv[1]]()
print("compiled")
