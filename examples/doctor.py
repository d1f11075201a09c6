"""The doctor on an exercise as it was once published: two heads of one feature, one axis wrong.

The heads' softmax runs over dim=1, which in (batch, queries, keys) is the queries' axis. Nothing
crashes, the shapes are right, and every token sees the future through the sums.
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
report = diagnose(TwoHeads(axis=1), kind="self", causal=True)
show(report, Console(width=110))

print("\nnamed:", "the softmax runs over the query axis" in report.failed[0].diagnosis)
print("mended, dim=-1:", diagnose(TwoHeads(axis=-1), kind="self", causal=True).ok)
