"""Check a published exercise: two heads of one feature, with the softmax over the wrong axis.

The softmax runs over dim=1, which is the query axis of (batch, queries, keys). Nothing crashes and
the shapes are correct, but every token depends on later tokens, through the sums.
"""

import torch
from rich.console import Console
from torch import nn

from headway.check import diagnose
from headway.check.render import show


class CausalHead(nn.Module):
    def __init__(self, d_in: int, d_out: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.query, self.key, self.value = (nn.Linear(d_in, d_out, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = self.query(x), self.key(x), self.value(x)
        scores = queries @ keys.transpose(1, 2)
        later = torch.triu(torch.ones(x.shape[1], x.shape[1]), diagonal=1).bool()
        scores = scores.masked_fill(later, -torch.inf)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=self.axis)
        return weights @ values


class TwoHeads(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(CausalHead(3, 1, axis) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([head(x) for head in self.heads], dim=-1)


torch.manual_seed(123)
diagnosis = diagnose(TwoHeads(axis=1), kind="self", causal=True)
show(diagnosis, Console(width=110))

print("\nbug named:", "the softmax runs over the query axis" in diagnosis.failed[0].diagnosis)
print("fixed with dim=-1:", diagnose(TwoHeads(axis=-1), kind="self", causal=True).ok)
