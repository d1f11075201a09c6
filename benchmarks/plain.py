"""The plainest way to train a GPT-2-like model in PyTorch: what Headway is measured against.

nn.Linear, scaled_dot_product_attention, nn.GELU, PyTorch's AdamW, learned positions. On a CPU the
settings are those that nanoGPT's README (Karpathy 2022) gives for Shakespeare, except for the
learning rate: 1e-3 (nanoGPT's) ended at 1.907 nats, 2e-3 at 1.807 and 3e-3 at 1.758. On a GPU it
stands for nanoGPT: the same operations, bfloat16 by autocast, compiled with its loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

STEPS, WARMUP, RATE = 2000, 100, 3e-3
NANOGPT = 1e-3  # nanoGPT's learning rate


class Sizes(NamedTuple):
    layers: int
    heads: int
    width: int
    context: int
    batch: int


SMALL = Sizes(layers=4, heads=4, width=128, context=64, batch=12)
GPT2 = Sizes(layers=12, heads=12, width=768, context=1024, batch=16)


class Attention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.out = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        heads = self.sizes.heads
        queries, keys, values = (
            part.view(batch, tokens, heads, width // heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=-1)
        )
        context = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.out(context.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(sizes)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class PlainGPT(nn.Module):
    def __init__(self, vocabulary: int, sizes: Sizes = SMALL) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.context, sizes.width)
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.layers)))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for block in self.blocks:
            for layer in (block.attention.out, block.mlp[2]):
                nn.init.zeros_(layer.bias)
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * sizes.layers))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """The logits or, with targets, their loss."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(positions)
        logits = self.head(self.norm(self.blocks(x)))
        if targets is None:
            return logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    @torch.no_grad()
    def copy_from(self, ours: Mapping[str, Tensor]) -> None:
        """Copy the parameters of a Headway model of the preset gpt2."""
        pairs = [(self.embedding, "embedding"), (self.positions, "position_embedding")]
        pairs.append((self.norm, "final_norm"))
        for number, block in enumerate(self.blocks):
            name = f"blocks.{number}"
            pairs += [(block.norm_1, f"{name}.attention_norm"), (block.norm_2, f"{name}.mlp_norm")]
            pairs += [(block.mlp[0], f"{name}.mlp.up"), (block.mlp[2], f"{name}.mlp.down")]
            pairs.append((block.attention.out, f"{name}.attention.output"))
            for kind in ("weight", "bias"):
                parts = [ours[f"{name}.attention.{part}.{kind}"] for part in "qkv"]
                getattr(block.attention.qkv, kind).copy_(torch.cat(parts))
        for module, name in pairs:
            for kind, parameter in module.named_parameters():
                parameter.copy_(ours[f"{name}.{kind}"])


class PlainTrainer:
    """The loop that everybody writes first; on a GPU with autocast and torch.compile."""

    def __init__(
        self,
        tokens: Tensor,
        vocabulary: int,
        seed: int = 0,
        sizes: Sizes = SMALL,
        *,
        peak: float = RATE,
        steps: int = STEPS,
        device: str = "cpu",
        compiled: bool = False,
        bfloat16: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.tokens, self.step, self.sizes = tokens, 0, sizes
        self.peak, self.steps = peak, steps
        self.device, self.bfloat16 = device, bfloat16
        self.model = PlainGPT(vocabulary, sizes).to(device)
        self.loss = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=RATE,
            betas=(0.9, 0.99),
            weight_decay=0.1,
            fused=device == "cuda" or None,
        )

    def start(self) -> Tensor:
        """Take a step; the loss is on the device."""
        context = self.sizes.context
        starts = torch.randint(len(self.tokens) - context, (self.sizes.batch,))
        inputs = torch.stack([self.tokens[s : s + context] for s in starts])
        targets = torch.stack([self.tokens[s + 1 : s + 1 + context] for s in starts])
        if self.device == "cuda":
            inputs, targets = (
                x.pin_memory().to("cuda", non_blocking=True) for x in (inputs, targets)
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * share(self.step, self.steps)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(inputs, targets)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def advance(self) -> float:
        return self.start().item()


def share(step: int, steps: int) -> float:
    """The share of the learning rate: up in a line, down along a cosine to a tenth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = min(1.0, (step - WARMUP) / (steps - WARMUP))
    return 0.55 + 0.45 * math.cos(math.pi * done)
