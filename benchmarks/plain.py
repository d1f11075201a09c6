"""The plainest way to train a GPT-2-like model in PyTorch: what Headway is measured against.

nn.Linear, scaled_dot_product_attention, nn.GELU, AdamW as it comes, learned positions, batches of
12; the settings are those that nanoGPT's README (Karpathy 2022) gives for Shakespeare on a CPU, but
for the learning rate: 1e-3 (nanoGPT's) ended at 1.907 nats, 2e-3 at 1.807 and 3e-3 at 1.758.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
STEPS, WARMUP, RATE = 2000, 100, 3e-3


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        queries, keys, values = (
            part.view(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.qkv(x).split(WIDTH, dim=-1)
        )
        context = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.out(context.transpose(1, 2).reshape(batch, tokens, WIDTH))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class PlainGPT(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for block in self.blocks:
            for layer in (block.attention.out, block.mlp[2]):
                nn.init.zeros_(layer.bias)
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class PlainTrainer:
    """The loop that everybody writes first."""

    def __init__(self, tokens: Tensor, vocabulary: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.tokens, self.step = tokens, 0
        self.model = PlainGPT(vocabulary)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.1
        )

    def advance(self) -> float:
        starts = torch.randint(len(self.tokens) - CONTEXT, (BATCH,))
        inputs = torch.stack([self.tokens[s : s + CONTEXT] for s in starts])
        targets = torch.stack([self.tokens[s + 1 : s + 1 + CONTEXT] for s in starts])
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step)
        loss = nn.functional.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()


def rate(step: int) -> float:
    """Up in a line, down along a cosine to a tenth."""
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    done = min(1.0, (step - WARMUP) / (STEPS - WARMUP))
    return RATE * (0.55 + 0.45 * math.cos(math.pi * done))
