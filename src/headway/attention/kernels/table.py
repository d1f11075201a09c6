"""The table of all kernels by name."""

from types import MappingProxyType

from headway.attention.kernels.einsum import EINSUM
from headway.attention.kernels.flex import FLEX
from headway.attention.kernels.jax import JAX
from headway.attention.kernels.kernel import Kernel
from headway.attention.kernels.plain import PLAIN
from headway.attention.kernels.sdpa import CUDNN, EFFICIENT, FLASH, MATH, SDPA
from headway.attention.kernels.stacked import STACKED
from headway.attention.kernels.tiled import TILED
from headway.attention.kernels.triton import TRITON
from headway.nearest import named

KERNELS: MappingProxyType[str, Kernel] = MappingProxyType(
    {
        "plain": PLAIN,
        "stacked": STACKED,
        "einsum": EINSUM,
        "tiled": TILED,
        "sdpa": SDPA,
        "sdpa-math": MATH,
        "sdpa-flash": FLASH,
        "sdpa-efficient": EFFICIENT,
        "sdpa-cudnn": CUDNN,
        "flex": FLEX,
        "jax": JAX,
        "triton": TRITON,
    }
)


def kernel_named(name: str) -> Kernel:
    """The kernel of this name. Raises ValueError with the nearest name if there is none."""
    return named(KERNELS, name, "kernel")
