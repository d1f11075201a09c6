"""The PyTorch engine."""

import torch as _torch

from headway.attention.arrays import namespace as _namespace
from headway.torch.gpt import GPT, multi_head, of_rung
from headway.torch.layers import Cache, MultiHeadAttention, RungAttention

# Looked up once here, so that torch.compile finds the namespace in its table.
for _kind in (_torch.Tensor, _torch.nn.Parameter):
    _namespace(_kind(_torch.empty(0)))

__all__ = ["GPT", "Cache", "MultiHeadAttention", "RungAttention", "multi_head", "of_rung"]
