"""Mistral 7B, smaller: fused projections, grouped queries, a sliding window and a rolling cache.

Layout of heads: (batch, tokens, heads, dim).
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Output(NamedTuple):
    logits: Tensor


class RotaryTable(nn.Module):
    def __init__(self, head_dim: int, max_len: int, base: float) -> None:
        super().__init__()
        frequency = 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.arange(max_len).float()[:, None] * frequency[None, :]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        cos = self.cos[positions][:, None, :]
        sin = self.sin[positions][:, None, :]
        left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean_square = torch.mean(x**2, dim=-1, keepdim=True)
        return x / torch.sqrt(mean_square + self.eps) * self.scale


class GroupedAttention(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.heads = config["num_attention_heads"]
        self.kv_heads = config["num_key_value_heads"]
        self.head_dim = config["head_dim"]
        self.window = config["sliding_window"]
        width = config["hidden_size"]
        total = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = nn.Linear(width, total, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.rotary = RotaryTable(
            self.head_dim,
            config["max_position_embeddings"],
            config["rope_parameters"]["rope_theta"],
        )

    def forward(self, x: Tensor, positions: Tensor, cache: dict | None = None) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q = self.rotary(q, positions)
        k = self.rotary(k, positions)
        key_positions = positions
        if cache is not None:
            if cache:
                k = torch.cat([cache["k"], k], dim=1)
                v = torch.cat([cache["v"], v], dim=1)
                key_positions = torch.cat([cache["positions"], positions])
            keep = slice(-self.window, None)
            cache["k"], cache["v"] = k[:, keep], v[:, keep]
            cache["positions"] = key_positions[keep]
        distance = positions[:, None] - key_positions[None, :]
        visible = (distance >= 0) & (distance < self.window)
        bias = torch.zeros(visible.shape, dtype=x.dtype).masked_fill(~visible, -math.inf)
        # Every key serves a group of queries.
        q = q.view(batch, length, self.kv_heads, -1, self.head_dim)
        scores = q.permute(0, 2, 3, 1, 4) @ k.permute(0, 2, 3, 1)[:, :, None]
        scores = scores / self.head_dim**0.5
        weights = F.softmax(scores + bias, dim=-1)
        context = weights @ v.permute(0, 2, 1, 3)[:, :, None]
        context = context.permute(0, 3, 1, 2, 4).reshape(batch, length, -1)
        return self.out(context)


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["rms_norm_eps"]
        self.attention_norm, self.mlp_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.attention = GroupedAttention(config)
        self.mlp = SwiGLU(width, config["intermediate_size"])

    def forward(self, x: Tensor, positions: Tensor, cache: dict | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), positions, cache)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class Mistral(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config["vocab_size"], config["hidden_size"])
        layers = config["num_hidden_layers"]
        self.layers = nn.Sequential(*[DecoderLayer(config) for _ in range(layers)])
        self.final_norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, tokens: Tensor, cache: list | None = None) -> Output:
        seen = 0
        if cache:
            seen = int(cache[0]["positions"][-1]) + 1
        elif cache is not None:
            cache += [{} for _ in self.layers]
        positions = torch.arange(tokens.shape[1]) + seen
        x = self.embedding(tokens)
        for index, layer in enumerate(self.layers):
            x = layer(x, positions, None if cache is None else cache[index])
        return Output(self.head(self.final_norm(x)))


def load(folder) -> Mistral:
    config = json.loads(Path(folder, "config.json").read_text())
    file = load_file(Path(folder, "model.safetensors"))
    model = Mistral(config)
    state = {
        "embedding.weight": file["model.embed_tokens.weight"],
        "final_norm.scale": file["model.norm.weight"],
        "head.weight": file["lm_head.weight"],
    }
    for index in range(config["num_hidden_layers"]):
        here, there = f"layers.{index}.", f"model.layers.{index}."
        projections = [file[f"{there}self_attn.{name}_proj.weight"] for name in "qkv"]
        state[here + "attention.qkv.weight"] = torch.cat(projections)
        state[here + "attention.out.weight"] = file[there + "self_attn.o_proj.weight"]
        both = [file[there + "mlp.gate_proj.weight"], file[there + "mlp.up_proj.weight"]]
        state[here + "mlp.gate_up.weight"] = torch.cat(both)
        state[here + "mlp.down.weight"] = file[there + "mlp.down_proj.weight"]
        state[here + "attention_norm.scale"] = file[there + "input_layernorm.weight"]
        state[here + "mlp_norm.scale"] = file[there + "post_attention_layernorm.weight"]
    model.load_state_dict(state)
    return model.eval()


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens).logits
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = -100  # the last token has no next one
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    no_decay = [p for name, p in model.named_parameters() if name.endswith("scale")]
    decay = [p for name, p in model.named_parameters() if not name.endswith("scale")]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0}],
        lr=0.001,
        betas=(0.9, 0.95),
    )
