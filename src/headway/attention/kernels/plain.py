"""The formula as a kernel: it supports every call."""

from headway.attention.formula import attention
from headway.attention.kernels.kernel import Kernel

PLAIN = Kernel(run=attention)
