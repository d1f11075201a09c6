"""Qwen 3 with einsum throughout. Heads are an axis of every weight, and nothing is reshaped."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import einsum, nn


def rms_norm(x, weight, eps):
    variance = (x * x).mean(dim=-1, keepdim=True)
    return weight * (x / torch.sqrt(variance + eps))


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rope(x, theta):
    """x: batch, position, head, dim."""
    dim = x.shape[-1]
    inv_freq = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    position = torch.arange(x.shape[1], dtype=torch.float64)
    angle = torch.cat([position[:, None] * inv_freq] * 2, dim=-1)[:, None, :]
    return x * angle.cos().to(x.dtype) + rotate_half(x) * angle.sin().to(x.dtype)


def weight(*shape):
    return nn.Parameter(torch.zeros(shape))


class Layer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.eps, self.theta = cfg["rms_norm_eps"], cfg["rope_parameters"]["rope_theta"]
        width, inner = cfg["hidden_size"], cfg["intermediate_size"]
        heads, groups, dim = (
            cfg["num_attention_heads"],
            cfg["num_key_value_heads"],
            cfg["head_dim"],
        )
        self.share = heads // groups
        self.norm1, self.norm2 = weight(width), weight(width)
        self.q_norm, self.k_norm = weight(dim), weight(dim)
        self.w_q = weight(heads, dim, width)
        self.w_k = weight(groups, dim, width)
        self.w_v = weight(groups, dim, width)
        self.w_o = weight(width, heads, dim)
        self.w_gate, self.w_up = weight(inner, width), weight(inner, width)
        self.w_down = weight(width, inner)

    def attend(self, x):
        q = einsum("btc,hdc->bthd", x, self.w_q)
        k = einsum("btc,gdc->btgd", x, self.w_k)
        v = einsum("btc,gdc->btgd", x, self.w_v)
        q = rms_norm(q, self.q_norm, self.eps)
        k = rms_norm(k, self.k_norm, self.eps)
        q = rope(q, self.theta)
        k = rope(k, self.theta)
        k = k.repeat_interleave(self.share, dim=2)
        v = v.repeat_interleave(self.share, dim=2)
        scores = einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
        i, j = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[1])
        scores = torch.where(j <= i, scores, torch.finfo(scores.dtype).min)
        probs = scores.softmax(dim=-1)
        out = einsum("bhij,bjhd->bihd", probs, v)
        return einsum("bihd,chd->bic", out, self.w_o)

    def feed_forward(self, x):
        gate = einsum("btc,fc->btf", x, self.w_gate)
        up = einsum("btc,fc->btf", x, self.w_up)
        hidden = gate * torch.sigmoid(gate) * up
        return einsum("btf,cf->btc", hidden, self.w_down)

    def forward(self, x):
        x = x + self.attend(rms_norm(x, self.norm1, self.eps))
        return x + self.feed_forward(rms_norm(x, self.norm2, self.eps))


class Qwen3(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.eps = cfg["rms_norm_eps"]
        self.embed = weight(cfg["vocab_size"], cfg["hidden_size"])
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg["num_hidden_layers"]))
        self.norm = weight(cfg["hidden_size"])

    def forward(self, tokens):
        x = self.embed[tokens]
        for layer in self.layers:
            x = layer(x)
        x = rms_norm(x, self.norm, self.eps)
        return einsum("btc,vc->btv", x, self.embed)


@torch.no_grad()
def load(folder):
    folder = Path(folder)
    cfg = json.loads((folder / "config.json").read_text())
    w = load_file(folder / "model.safetensors")
    model = Qwen3(cfg)
    model.embed.copy_(w["model.embed_tokens.weight"])
    model.norm.copy_(w["model.norm.weight"])
    dim = cfg["head_dim"]
    for n, layer in enumerate(model.layers):

        def get(name, prefix=f"model.layers.{n}."):
            return w[prefix + name + ".weight"]

        layer.norm1.copy_(get("input_layernorm"))
        layer.norm2.copy_(get("post_attention_layernorm"))
        layer.q_norm.copy_(get("self_attn.q_norm"))
        layer.k_norm.copy_(get("self_attn.k_norm"))
        layer.w_q.copy_(get("self_attn.q_proj").unflatten(0, (-1, dim)))
        layer.w_k.copy_(get("self_attn.k_proj").unflatten(0, (-1, dim)))
        layer.w_v.copy_(get("self_attn.v_proj").unflatten(0, (-1, dim)))
        layer.w_o.copy_(get("self_attn.o_proj").unflatten(1, (-1, dim)))
        layer.w_gate.copy_(get("mlp.gate_proj"))
        layer.w_up.copy_(get("mlp.up_proj"))
        layer.w_down.copy_(get("mlp.down_proj"))
    return model.eval()


def loss(model, tokens):
    log_probs = model(tokens).log_softmax(dim=-1)
    target = tokens[:, 1:, None]
    return -log_probs[:, :-1].gather(-1, target).mean()


def optimizer(model):
    # The weights of the heads have three axes, and they are matrices all the same.
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    opt = torch.optim.AdamW(matrices, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    opt.add_param_group({"params": vectors, "weight_decay": 0.0})
    return opt
