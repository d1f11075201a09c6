"""Llama in the style of Meta's code: complex rotary, so that the weights of q and k are permuted.

Tensors of heads are (batch, tokens, heads, dim) until the attention of PyTorch.
"""

import json
import os

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu


def precompute_freqs_cis(dim, end, theta):
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))
    t = torch.arange(end, dtype=torch.float64)
    angles = torch.outer(t, freqs)
    return torch.polar(torch.ones_like(angles), angles)


def apply_rotary_emb(x, freqs_cis):
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    freqs_cis = freqs_cis[None, :, None, :].to(pairs.dtype)
    return torch.view_as_real(pairs * freqs_cis).flatten(3)


def repeat_kv(x, n_rep):
    bs, slen, n_kv_heads, head_dim = x.shape
    x = x[:, :, :, None, :].expand(bs, slen, n_kv_heads, n_rep, head_dim)
    return x.reshape(bs, slen, n_kv_heads * n_rep, head_dim)


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.n_heads = args["num_attention_heads"]
        self.n_kv_heads = args["num_key_value_heads"]
        self.head_dim = args["hidden_size"] // self.n_heads
        dim = args["hidden_size"]
        self.wq = nn.Linear(dim, self.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(self.n_heads * self.head_dim, dim, bias=False)

    def forward(self, x, freqs_cis, cache):
        bsz, seqlen, _ = x.shape
        xq = self.wq(x).view(bsz, seqlen, self.n_heads, self.head_dim)
        xk = self.wk(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim)
        xv = self.wv(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim)
        xq = apply_rotary_emb(xq, freqs_cis)
        xk = apply_rotary_emb(xk, freqs_cis)
        if cache is not None:
            if "k" in cache:
                xk = torch.cat((cache["k"], xk), dim=1)
                xv = torch.cat((cache["v"], xv), dim=1)
            cache["k"], cache["v"] = xk, xv
        keys = repeat_kv(xk, self.n_heads // self.n_kv_heads)
        values = repeat_kv(xv, self.n_heads // self.n_kv_heads)
        xq, keys, values = xq.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        past = keys.shape[2] - seqlen
        mask = None
        if past and seqlen > 1:  # is_causal aligns the first query with the first key
            mask = torch.ones(seqlen, past + seqlen, dtype=torch.bool).tril(past)
        out = scaled_dot_product_attention(xq, keys, values, attn_mask=mask, is_causal=past == 0)
        out = out.transpose(1, 2).reshape(bsz, seqlen, -1)
        return self.wo(out)


class FeedForward(nn.Module):
    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x):
        return self.w2(silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.attention = Attention(args)
        self.feed_forward = FeedForward(args["hidden_size"], args["intermediate_size"])
        self.attention_norm = RMSNorm(args["hidden_size"], args["rms_norm_eps"])
        self.ffn_norm = RMSNorm(args["hidden_size"], args["rms_norm_eps"])

    def forward(self, x, freqs_cis, cache):
        h = x + self.attention(self.attention_norm(x), freqs_cis, cache)
        return h + self.feed_forward(self.ffn_norm(h))


class Transformer(nn.Module):
    def __init__(self, args):
        super().__init__()
        dim = args["hidden_size"]
        self.tok_embeddings = nn.Embedding(args["vocab_size"], dim)
        self.layers = nn.ModuleList(
            TransformerBlock(args) for _ in range(args["num_hidden_layers"])
        )
        self.norm = RMSNorm(dim, args["rms_norm_eps"])
        self.output = nn.Linear(dim, args["vocab_size"], bias=False)
        theta = args["rope_parameters"]["rope_theta"]
        self.freqs_cis = precompute_freqs_cis(
            dim // args["num_attention_heads"], args["max_position_embeddings"], theta
        )

    def forward(self, tokens, cache=None):
        start_pos = 0
        if cache:
            start_pos = cache[0]["k"].shape[1]
        elif cache is not None:
            cache.extend({} for _ in self.layers)
        freqs_cis = self.freqs_cis[start_pos : start_pos + tokens.shape[1]]
        h = self.tok_embeddings(tokens)
        for n, layer in enumerate(self.layers):
            h = layer(h, freqs_cis, cache[n] if cache is not None else None)
        return self.output(self.norm(h))


NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def permute(w, n_heads):
    """From halves, as in Hugging Face's files, to pairs of neighbours."""
    return w.view(n_heads, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape)


def load(folder):
    with open(os.path.join(folder, "config.json")) as f:
        args = json.load(f)
    model = Transformer(args)
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as f:
        weights = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    state = {
        "tok_embeddings.weight": weights["model.embed_tokens.weight"],
        "norm.weight": weights["model.norm.weight"],
        "output.weight": weights["lm_head.weight"],
    }
    for n in range(args["num_hidden_layers"]):
        for theirs, ours in NAMES.items():
            w = weights[f"model.layers.{n}.{theirs}.weight"]
            if ours == "attention.wq":
                w = permute(w, args["num_attention_heads"])
            if ours == "attention.wk":
                w = permute(w, args["num_key_value_heads"])
            state[f"layers.{n}.{ours}.weight"] = w
    model.load_state_dict(state)
    return model.eval()


def loss(model, tokens):
    logits = model(tokens[:, :-1])
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def optimizer(model):
    groups = {True: [], False: []}
    for p in model.parameters():
        groups[p.ndim > 1].append(p)
    return torch.optim.AdamW(
        [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.95),
        weight_decay=0.1,
    )
