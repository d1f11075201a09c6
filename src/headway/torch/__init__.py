"""The PyTorch engine."""

import torch as _torch

from headway.attention.arrays import namespace as _namespace
from headway.torch.gpt import GPT, multi_head, of_rung
from headway.torch.layers import Cache, MultiHeadAttention, RungAttention

# Look up the namespace of both types once, so that torch.compile only sees the cached result.
for _kind in (_torch.Tensor, _torch.nn.Parameter):
    _namespace(_kind(_torch.empty(0)))

__all__ = ["GPT", "Cache", "MultiHeadAttention", "RungAttention", "multi_head", "of_rung"]
