"""GPT-2 in one file: manual attention, as in many tutorials, and a cache for generation."""

import json
import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file


class LayerNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = x.var(-1, keepdim=True, unbiased=False)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return x * self.weight + self.bias


def new_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config["n_head"]
        self.head_dim = config["n_embd"] // config["n_head"]
        self.c_attn = nn.Linear(config["n_embd"], 3 * config["n_embd"])
        self.c_proj = nn.Linear(config["n_embd"], config["n_embd"])
        size = config["n_positions"]
        mask = torch.tril(torch.ones(size, size, dtype=torch.bool))
        self.register_buffer("mask", mask, persistent=False)

    def split_heads(self, x):
        B, T, _ = x.shape
        return x.view(B, T, self.n_head, self.head_dim).transpose(1, 2)

    def forward(self, x, past=None):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = self.split_heads(q)
        k = self.split_heads(k)
        v = self.split_heads(v)
        if past is not None:
            if past:
                k = torch.cat([past[0], k], dim=2)
                v = torch.cat([past[1], v], dim=2)
            past[:] = [k, v]
        S = k.shape[2]
        scores = q @ k.transpose(-2, -1)
        scores = scores / math.sqrt(self.head_dim)
        hidden = ~self.mask[S - T : S, :S]
        scores = scores.masked_fill(hidden, float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        y = weights @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        inner = config.get("n_inner") or 4 * config["n_embd"]
        self.c_fc = nn.Linear(config["n_embd"], inner)
        self.c_proj = nn.Linear(inner, config["n_embd"])

    def forward(self, x):
        return self.c_proj(new_gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        eps = config["layer_norm_epsilon"]
        self.ln_1 = LayerNorm(config["n_embd"], eps)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config["n_embd"], eps)
        self.mlp = MLP(config)

    def forward(self, x, past=None):
        x = x + self.attn(self.ln_1(x), past)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT2(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config["vocab_size"], config["n_embd"])
        self.wpe = nn.Embedding(config["n_positions"], config["n_embd"])
        self.h = nn.ModuleList([Block(config) for _ in range(config["n_layer"])])
        self.ln_f = LayerNorm(config["n_embd"], config["layer_norm_epsilon"])
        self.lm_head = nn.Linear(config["n_embd"], config["vocab_size"], bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens, cache=None):
        start = 0
        if cache is not None:
            if not cache:
                cache.extend([] for _ in self.h)
            if cache[0]:
                start = cache[0][0].shape[2]
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        for i, block in enumerate(self.h):
            x = block(x, None if cache is None else cache[i])
        x = self.ln_f(x)
        return self.lm_head(x)


# The files have the weights of Conv1D, which are (in, out).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def load(folder):
    config = json.loads((Path(folder) / "config.json").read_text())
    model = GPT2(config)
    state = {}
    for name, weight in load_file(Path(folder) / "model.safetensors").items():
        name = name.removeprefix("transformer.")
        if name.endswith(TRANSPOSED):
            weight = weight.t()
        state[name] = weight
    state["lm_head.weight"] = state["wte.weight"]
    model.load_state_dict(state)
    return model.eval()


def loss(model, tokens):
    logits = model(tokens)[:, :-1]
    targets = tokens[:, 1:]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def optimizer(model):
    decay = [p for p in model.parameters() if p.dim() >= 2]
    no_decay = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
