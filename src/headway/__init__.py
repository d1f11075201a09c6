"""Headway: attention, from one dot product to a GPT that you trained.

Importing it loads neither PyTorch nor JAX.
"""

from headway.kernels.api import attend, explain, weights
from headway.kernels.call import Unsupported
from headway.tracing import edit, tap, trace

__all__ = ["Unsupported", "attend", "edit", "explain", "tap", "trace", "weights"]
