"""Right but unusual attentions, which the doctor must not accuse.

`declared` is what an honest user declares. They were written without a look at the checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from variants import (
    OWN,
    PACKED,
    RIGHT,
    Attention,
    Fused,
    Heads,
    Library,
    Matrices,
    Model,
    allowed,
    angles,
    attend,
    build,
    distance,
    hide,
    replace,
    rotate,
    rotate_pairs,
    scores,
    split_four,
    turned_from,
)


@dataclass(frozen=True)
class Unusual:
    name: str
    attention: Any
    declared: dict[str, Any]
    source: str


UNUSUAL: list[Unusual] = []


def function(name: str, source: str, call: Any, *features: str, **declared: Any) -> None:
    whole = {"kind": "qkv", "engine": "torch", "features": features, **declared}
    UNUSUAL.append(Unusual(name, call, whole, source))


def module(
    name: str,
    source: str,
    *features: str,
    causal: bool = True,
    declared: dict[str, Any] | None = None,
    steps: dict[str, Any] | None = None,
    base: type = Attention,
    options: dict[str, Any] | None = None,
    **methods: Any,
) -> None:
    changed = replace(RIGHT, **(steps or {}))
    attention = build(base, causal=causal, steps=changed, methods=methods, **(options or {}))
    whole = {"kind": "self", "width": 32, "causal": causal, "features": features}
    UNUSUAL.append(Unusual(name, attention, {**whole, **(declared or {})}, source))


def model(name: str, source: str, *features: str, **options: Any) -> None:
    layer = type("Layer", (Attention,), options.pop("layer", {}))
    attention = build(Model, layer=layer, methods=options)
    whole = {"kind": "model", "vocabulary": 50, "causal": True, "features": features}
    UNUSUAL.append(Unusual(name, attention, whole, source))


def with_steps(**steps: Any) -> Any:
    changed = replace(RIGHT, **steps)
    return lambda q, k, v, **options: attend(q, k, v, steps=changed, **options)


def seen(test: Callable[..., Tensor]) -> dict[str, Any]:
    """Steps in which test(distance) tells which keys are seen in every call."""
    return {"allowed": lambda a, mask, causal, window: test(distance(a)).expand(a.shape)}


# Windows and patterns

function(
    "sliding window in every call",
    "Mistral 7B, arXiv 2310.06825",
    with_steps(**seen(lambda d: (d >= 0) & (d < 4))),
    causal=True,
    window=4,
)
function(
    "window on both sides",
    "ModernBERT, arXiv 2412.13663",
    with_steps(**seen(lambda d: d.abs() < 3)),
    window=3,
)
module(
    "module: sliding window",
    "Gemma 3, arXiv 2503.19786",
    declared={"window": 5},
    steps=seen(lambda d: (d >= 0) & (d < 5)),
)
module(
    "module: window on both sides",
    "Longformer, arXiv 2004.05150",
    causal=False,
    declared={"window": 3},
    steps=seen(lambda d: d.abs() < 3),
)
module(
    "module: sliding window with a cache of its size",
    "huggingface/transformers",
    "cache",
    declared={"window": 4},
    steps=seen(lambda d: (d >= 0) & (d < 4)),
    remember=lambda self, k, v, cache: tuple(
        torch.cat([old[:, :, -3:], new], 2) for old, new in zip(cache, (k, v), strict=True)
    ),
)


def pattern(test: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps and a declaration of a mask by positions."""

    def positions(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
        n, m = a.shape[-2:]
        head = torch.arange(a.shape[1])[:, None, None]
        return test(0, head, torch.arange(m - n, m)[:, None], torch.arange(m)).expand(a.shape)

    return {"allowed": positions}, {"pattern": test}


for title, paper, causal, test in (
    (
        "dilated window",
        "Longformer, arXiv 2004.05150",
        True,
        lambda b, h, q, k: (q >= k) & ((q - k) % 2 == 0) & (q - k < 8),
    ),
    (
        "blocks",
        "Blockwise self-attention, arXiv 1911.02972",
        False,
        lambda b, h, q, k: q // 4 == k // 4,
    ),
    (
        "global tokens and a window",
        "Longformer, arXiv 2004.05150",
        False,
        lambda b, h, q, k: (abs(q - k) < 2) | (q < 1) | (k < 1),
    ),
    (
        "first tokens and a window",
        "StreamingLLM, arXiv 2309.17453",
        True,
        lambda b, h, q, k: (q >= k) & ((q - k < 4) | (k < 2)),
    ),
    (
        "strided, by heads",
        "Sparse Transformer, arXiv 1904.10509",
        True,
        lambda b, h, q, k: (q >= k) & (((h < 2) & (q - k < 3)) | ((h >= 2) & ((q - k) % 3 == 0))),
    ),
    (
        "blocks that see earlier blocks",
        "Block diffusion, arXiv 2503.09573",
        False,
        lambda b, h, q, k: k // 3 <= q // 3,
    ),
):
    steps, declared = pattern(test)
    module(f"module: {title}", paper, causal=causal, declared=declared, steps=steps)
    function(title, paper, with_steps(**steps), causal=causal, **declared, heads=4)

PREFIX = {"declared": {"prefix": 3}, "steps": pattern(lambda b, h, q, k: (k <= q) | (k < 3))[0]}
module("module: prefix language model", "bigscience-workshop/Megatron-DeepSpeed#167", **PREFIX)
function(
    "prefix language model",
    "T5, arXiv 1910.10683",
    with_steps(**PREFIX["steps"]),
    causal=True,
    prefix=3,
)

# Sinks


def with_sinks(a: Tensor, may: Tensor | None = None) -> Tensor:
    """One more logit for each head, which is dropped after the softmax."""
    sinks = torch.linspace(-1, 1, a.shape[1], dtype=a.dtype)[:, None, None]
    return torch.cat([a, sinks.expand(*a.shape[:-1], 1)], -1).softmax(-1)[..., :-1]


def off_by_one(a: Tensor) -> Tensor:
    top = a.amax(-1, keepdim=True).clamp(min=0)
    weights = (a - top).exp()
    return weights / ((-top).exp() + weights.sum(-1, keepdim=True))


function("sinks", "openai/gpt-oss", with_steps(softmax=with_sinks), sinks=True, heads=4)
function(
    "softmax off by one",
    "softmax1/Flash-Attention-Softmax-N",
    with_steps(softmax=off_by_one),
    sinks=True,
)
module(
    "module: softmax off by one",
    "softmax1/Flash-Attention-Softmax-N",
    declared={"sinks": True},
    steps={"softmax": off_by_one},
)


def learned_sinks(self: Any) -> None:
    self.sinks = nn.Parameter(torch.randn(4, 1, 1))


def sink_core(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    a = scores(q, k)
    a = hide(a, allowed(a, mask, self.causal, None))
    a = torch.cat([a, self.sinks.expand(*a.shape[:-1], 1)], -1)
    return a.softmax(-1)[..., :-1] @ v


module(
    "module: learned sinks",
    "openai/gpt-oss",
    declared={"sinks": True},
    prepare=learned_sinks,
    core=sink_core,
)


class Memory(Attention):
    """Learned keys and values before the text, which every token sees."""

    def prepare(self) -> None:
        self.memory = nn.Parameter(torch.randn(2, 4, 3, 8))

    def core(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        k, v = (
            torch.cat([m.expand(len(t), -1, -1, -1), t], 2)
            for m, t in zip(self.memory, (k, v), strict=True)
        )
        d = distance(q @ k.mT)
        return (
            hide(
                scores(q, k), (d >= 0).expand(*q.shape[:3], -1) | ~torch.tensor(self.causal)
            ).softmax(-1)
            @ v
        )


module(
    "module: memory tokens",
    "Persistent memory, arXiv 1907.01470",
    declared={"sinks": True},
    base=Memory,
)
module(
    "module: memory tokens, not causal",
    "Persistent memory, arXiv 1907.01470",
    causal=False,
    declared={"sinks": True},
    base=Memory,
)


class Zero(nn.Module):
    def __init__(self, causal: bool = True, **options: Any) -> None:
        super().__init__()
        options.pop("steps", None)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, **options)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1) if self.causal else None
        return self.attention(x, x, x, attn_mask=hidden)[0]


module(
    "library: add_zero_attn",
    "pytorch/pytorch",
    base=Zero,
    options={"add_zero_attn": True},
    declared={"sinks": True},
)
module(
    "library: add_bias_kv",
    "pytorch/pytorch",
    base=Zero,
    causal=False,
    options={"add_bias_kv": True},
    declared={"sinks": True},
)

# Positions


def linear_biases(q: Tensor, k: Tensor) -> Tensor:
    slopes = 2.0 ** -(8 / q.shape[1] * torch.arange(1, q.shape[1] + 1, dtype=q.dtype))
    return scores(q, k) - slopes[:, None, None] * distance(q @ k.mT).abs()


POSITIONS = {"positions": True}
function(
    "ALiBi",
    "ALiBi, arXiv 2108.12409",
    lambda q, k, v: with_steps(scores=linear_biases)(q, k, v, causal=True),
    causal=True,
    positions=True,
    heads=4,
)
function(
    "ALiBi on both sides",
    "ofirpress/attention_with_linear_biases#5",
    with_steps(scores=linear_biases),
    positions=True,
    heads=4,
)
module(
    "module: ALiBi", "ALiBi, arXiv 2108.12409", declared=POSITIONS, steps={"scores": linear_biases}
)
module(
    "module: ALiBi with a cache",
    "ALiBi, arXiv 2108.12409",
    "cache",
    declared=POSITIONS,
    steps={"scores": linear_biases},
)
module(
    "module: ALiBi on both sides",
    "ofirpress/attention_with_linear_biases#5",
    causal=False,
    declared=POSITIONS,
    steps={"scores": linear_biases},
)


class Relative(Attention):
    """T5: no scale, and a learned bias for each bucket of distances."""

    def prepare(self) -> None:
        self.bias = nn.Embedding(33, self.heads)

    def core(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        a = q @ k.mT
        buckets = distance(a).clamp(-16, 16) + 16
        a = a + self.bias(buckets).permute(2, 0, 1)
        return hide(a, allowed(a, mask, self.causal, None)).softmax(-1) @ v


T5 = {"positions": True, "scale": 1.0}
module("module: T5", "T5, arXiv 1910.10683", declared=T5, base=Relative)
module("encoder: T5", "T5, arXiv 1910.10683", causal=False, declared=T5, base=Relative)
module("module: T5 with a cache", "T5, arXiv 1910.10683", "cache", declared=T5, base=Relative)


class Learned(Attention):
    def prepare(self) -> None:
        self.table = nn.Embedding(256, 32)

    def before(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.shape[1]))


module("module: learned positions", "GPT-2", declared=POSITIONS, base=Learned)
module(
    "encoder: learned positions",
    "BERT, arXiv 1810.04805",
    causal=False,
    declared=POSITIONS,
    base=Learned,
)


def rotary(
    base: float = 10000.0, share: float = 1.0, how: Any = rotate
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def turn_share(t: Tensor, p: Tensor) -> Tensor:
        d = int(t.shape[-1] * share)
        return torch.cat([how(t[..., :d], angles(p, t[..., :d], base)), t[..., d:]], -1)

    return lambda q, k, v, p: (turn_share(q, p), turn_share(k, p), v)


for title, paper, options, declared in (
    ("rotary, base 500,000", "Llama 3, arXiv 2407.21783", {"base": 5e5}, {"rotary_base": 5e5}),
    ("rotary, base 1,000,000", "Qwen 2.5, arXiv 2412.15115", {"base": 1e6}, {"rotary_base": 1e6}),
    ("rotary, half of the dims", "EleutherAI/gpt-neox", {"share": 0.5}, {"rotary_share": 0.5}),
    (
        "rotary, neighbours, half of the dims",
        "GLM-4, arXiv 2406.12793",
        {"share": 0.5, "how": rotate_pairs},
        {"rotary_share": 0.5, "rotary": "interleaved"},
    ),
    (
        "rotary, neighbours, base 500,000",
        "meta-llama/llama-models",
        {"base": 5e5, "how": rotate_pairs},
        {"rotary_base": 5e5, "rotary": "interleaved"},
    ),
):
    function(title, paper, with_steps(turn=rotary(**options)), "positions", head_dim=16, **declared)


def complex_rotary(q: Tensor, k: Tensor, v: Tensor, *, positions: Tensor) -> Tensor:
    def turned(t: Tensor) -> Tensor:
        pairs = torch.view_as_complex(t.contiguous().unflatten(-1, (-1, 2)))
        steps = angles(positions, t)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(steps), steps)).flatten(-2)

    return attend(turned(q), turned(k), v)


function(
    "rotary by complex numbers",
    "meta-llama/llama",
    complex_rotary,
    "positions",
    rotary="interleaved",
)
module("module: rotary", "RoFormer, arXiv 2104.09864", declared=POSITIONS, place=turned_from)
module(
    "module: rotary with a cache",
    "RoFormer, arXiv 2104.09864",
    "cache",
    declared=POSITIONS,
    place=turned_from,
)
module(
    "module: rotary turned backwards",
    "karpathy/nanochat#489",
    declared=POSITIONS,
    place=lambda self, q, k, past: tuple(
        rotate(t, -angles(torch.arange(past, past + t.shape[2]), t)) for t in (q, k)
    ),
)

# Queries and keys that are normalized, scales, caps


def rms(t: Tensor) -> Tensor:
    return t * (t.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


class Normed(Attention):
    """Qwen 3: learned RMS norms of each head's queries and keys."""

    def prepare(self) -> None:
        self.q_norm, self.k_norm = nn.RMSNorm(8, eps=1e-6), nn.RMSNorm(8, eps=1e-6)

    def place(self, q: Tensor, k: Tensor, past: int) -> Any:
        return self.q_norm(q), self.k_norm(k)


class Cosine(Attention):
    """Swin 2: the cosine, by a learned temperature."""

    def prepare(self) -> None:
        self.temperature = nn.Parameter(torch.rand(4, 1, 1) + 1)

    def core(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        a = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT
        a = a * self.temperature.exp().clamp(max=100)
        return hide(a, allowed(a, mask, self.causal, None)).softmax(-1) @ v


QK_NORM = {"qk_norm": True}
module(
    "module: RMS norm of queries and keys",
    "Qwen 3, arXiv 2505.09388",
    declared=QK_NORM,
    base=Normed,
)
module(
    "module: RMS norm, then rotary",
    "Qwen 3, arXiv 2505.09388",
    "cache",
    declared={**QK_NORM, **POSITIONS},
    base=Normed,
    place=lambda self, q, k, past: turned_from(self, self.q_norm(q), self.k_norm(k), past),
)
module(
    "module: cosine attention",
    "Swin 2, arXiv 2111.09883",
    causal=False,
    declared=QK_NORM,
    base=Cosine,
)
function(
    "RMS norm of queries and keys",
    "OLMo 2, arXiv 2501.00656",
    with_steps(prepare=lambda q, k, v: (rms(q), rms(k), v)),
    qk_norm=True,
)
function(
    "cosine times 10",
    "Query-key normalization, arXiv 2010.04245",
    with_steps(
        scores=lambda q, k: (
            10 * functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT
        )
    ),
    qk_norm=True,
    scale=10.0,
)


def softcap(cap: float) -> Callable[[Tensor], Tensor]:
    return lambda a: cap * (a / cap).tanh()


def gemma(q: Tensor, k: Tensor) -> Tensor:
    return softcap(50.0)(q @ k.mT * 224**-0.5)


function(
    "Gemma 2: scale and cap",
    "Gemma 2, arXiv 2408.00118",
    with_steps(scores=gemma),
    scale=224**-0.5,
    softcap=50.0,
)
module(
    "module: Gemma 2: scale and cap",
    "Gemma 2, arXiv 2408.00118",
    declared={"scale": 224**-0.5, "softcap": 50.0},
    steps={"scores": gemma},
)
function(
    "scale 1/d",
    "muP, arXiv 2203.03466",
    with_steps(scores=lambda q, k: q @ k.mT / q.shape[-1]),
    head_dim=8,
    scale=1 / 8,
)
module(
    "module: scale 1/d",
    "muP, arXiv 2203.03466",
    declared={"scale": 1 / 8},
    steps={"scores": lambda q, k: q @ k.mT / 8},
)
function("scale 1", "Gemma 3n and T5", with_steps(scores=lambda q, k: q @ k.mT), scale=1.0)
module(
    "module: scale 1", "GPT-Neo", declared={"scale": 1.0}, steps={"scores": lambda q, k: q @ k.mT}
)
function(
    "queries scaled first",
    "BERT and others",
    with_steps(scores=lambda q, k: (q * q.shape[-1] ** -0.5) @ k.mT),
)
function(
    "half of the scale on each side",
    "openai/guided-diffusion#38",
    with_steps(scores=lambda q, k: (q * q.shape[-1] ** -0.25) @ (k * k.shape[-1] ** -0.25).mT),
)


def by_baddbmm(q: Tensor, k: Tensor) -> Tensor:
    b, h, n, d = q.shape
    flat_k = k.reshape(b * h, -1, d)
    nothing = torch.empty(1, 1, 1, dtype=q.dtype)
    a = torch.baddbmm(nothing, q.reshape(b * h, n, d), flat_k.mT, beta=0, alpha=d**-0.5)
    return a.view(b, h, n, -1)


function("scaled in baddbmm", "EleutherAI/gpt-neox", with_steps(scores=by_baddbmm), "causal")
module("module: scaled in baddbmm", "Bloom", steps={"scores": by_baddbmm})


def by_length(q: Tensor, k: Tensor) -> Tensor:
    seen_keys = (distance(q @ k.mT) + torch.arange(k.shape[2]) + 1).to(q.dtype)
    return scores(q, k) * (1 + seen_keys.log())


module(
    "module: scale grows with the position",
    "Scalable softmax, arXiv 2501.19399",
    declared=POSITIONS,
    steps={"scores": by_length},
)
module(
    "encoder: scale grows with the length",
    "Scalable softmax, arXiv 2501.19399",
    causal=False,
    declared={"skip": ("duplicated", "prefix", "deleted", "scale")},
    steps={"scores": lambda q, k: scores(q, k) * torch.tensor(1.0 * k.shape[2]).log()},
)

# Gates and other normalizers


class Gated(Attention):
    """Qwen3-Next: the output of each head times a sigmoid of x."""

    parts = 32

    def prepare(self) -> None:
        self.gate = nn.Linear(32, self.parts)

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        return self.o(out * self.gate(x).sigmoid().repeat_interleave(32 // self.parts, -1))


GATE = {"gate": True}
module("module: output gate", "Gated attention, arXiv 2505.06708", declared=GATE, base=Gated)
module(
    "module: gate by head",
    "Gated attention, arXiv 2505.06708",
    causal=False,
    declared=GATE,
    base=Gated,
    parts=4,
)
module(
    "module: SwiGLU-like gate, with a cache",
    "RetNet, arXiv 2307.08621",
    "cache",
    declared=GATE,
    base=Gated,
    after=lambda self, x, out: self.o(functional.silu(self.gate(x)) * out),
)


def linear(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    a = (functional.elu(q) + 1) @ (functional.elu(k) + 1).mT
    a = a * (distance(a) >= 0) if causal else a
    return a / a.sum(-1, keepdim=True) @ v


def sparsemax(a: Tensor) -> Tensor:
    ordered = a.sort(-1, descending=True).values
    count = torch.arange(1, a.shape[-1] + 1, dtype=a.dtype)
    inside = 1 + count * ordered > ordered.cumsum(-1)
    size = inside.sum(-1, keepdim=True)
    threshold = (ordered.where(inside, 0.0).sum(-1, keepdim=True) - 1) / size
    return (a - threshold).clamp(min=0)


OTHER = {"normalizer": "other"}
function("linear attention", "Linear transformers, arXiv 2006.16236", linear, "causal", **OTHER)
function(
    "sigmoid attention",
    "Sigmoid attention, arXiv 2409.04431",
    with_steps(softmax=torch.sigmoid, revive=lambda w, may: w * may, hide=lambda a, may: a),
    "causal",
    **OTHER,
)
function("sparsemax", "Sparsemax, arXiv 1602.02068", with_steps(softmax=sparsemax), **OTHER)
module(
    "module: sigmoid attention",
    "Sigmoid attention, arXiv 2409.04431",
    declared=OTHER,
    steps={
        "softmax": lambda a: (a - 2).sigmoid(),
        "hide": lambda a, may: a.masked_fill(~may, -torch.inf),
    },
)
module(
    "module: squared ReLU",
    "Primer and gated attention units, arXiv 2202.10447",
    declared=OTHER,
    steps={
        "softmax": lambda a: a.relu().square() / 8,
        "hide": lambda a, may: a.masked_fill(~may, 0.0),
    },
)
module(
    "module: sparsemax",
    "Sparsemax, arXiv 1602.02068",
    causal=False,
    declared=OTHER,
    steps={"softmax": sparsemax},
)
module(
    "module: linear attention",
    "Linear transformers, arXiv 2006.16236",
    declared=OTHER,
    core=lambda self, q, k, v, mask=None: linear(q, k, v, causal=True),
)


class Differential(Attention):
    """The difference of two softmaxes."""

    def core(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        one, two = (
            attend(a, b, v, causal=self.causal)
            for a, b in zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
        )
        return one - 0.3 * two


module(
    "module: differential attention",
    "Differential transformer, arXiv 2410.05258",
    declared=OTHER,
    base=Differential,
)

# Projections


module("module: two kv heads", "GQA, arXiv 2305.13245", "mask", "cache", options={"kv_heads": 2})
module("module: one kv head", "MQA, arXiv 1911.02150", causal=False, options={"kv_heads": 1})
function("one kv head", "MQA, arXiv 1911.02150", attend, "causal", "mask", heads=4, kv_heads=1)
function(
    "groups by einsum",
    OWN,
    lambda q, k, v: torch.einsum(
        "bgrqk,bgkd->bgrqd",
        (
            torch.einsum("bgrqd,bgkd->bgrqk", q.unflatten(1, (k.shape[1], -1)), k)
            / q.shape[-1] ** 0.5
        ).softmax(-1),
        v,
    ).flatten(1, 2),
    heads=4,
    kv_heads=2,
)
function(
    "scaled_dot_product_attention with enable_gqa",
    "pytorch/pytorch",
    lambda q, k, v, causal=False: functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=True
    ),
    "causal",
    heads=4,
    kv_heads=2,
)


class Latent(Attention):
    """DeepSeek: keys and values from a small latent."""

    def prepare(self) -> None:
        self.down, self.k = nn.Linear(32, 10, bias=False), nn.Linear(10, 32, bias=False)
        self.v, self.norm = nn.Linear(10, 32, bias=False), nn.RMSNorm(10, eps=1e-6)
        self.q = nn.Sequential(nn.Linear(32, 12), nn.Linear(12, 32))

    def project(self, x: Tensor) -> Any:
        latent = self.norm(self.down(x))
        return self.q(x), self.k(latent), self.v(latent)


module("module: low-rank keys and values", "DeepSeek-V2, arXiv 2405.04434", base=Latent)
module(
    "module: low-rank keys and values, not causal",
    "DeepSeek-V2, arXiv 2405.04434",
    causal=False,
    base=Latent,
)
module("module: fused, in thirds", "karpathy/nanoGPT", base=Fused)


def interleaved_heads(self: Any, x: Tensor) -> Any:
    """[q | k | v] of each head, one head after the other."""
    return (t.flatten(2) for t in self.qkv(x).unflatten(-1, (4, 3, 8)).unbind(-2))


module("module: fused, head by head", "EleutherAI/gpt-neox", base=Fused, project=interleaved_heads)
module(
    "module: fused, (tokens, 3, heads, dim)",
    "huggingface/pytorch-image-models",
    base=Fused,
    causal=False,
    project=lambda self, x: (t.flatten(2) for t in self.qkv(x).unflatten(-1, (3, 4, 8)).unbind(2)),
)
module(
    "module: fused, values first",
    OWN,
    base=Fused,
    project=lambda self, x: self.qkv(x).chunk(3, -1)[::-1],
)
module(
    "module: features before heads",
    OWN,
    "mask",
    split=lambda self, t: t.unflatten(-1, (8, 4)).permute(0, 3, 1, 2),
    merge=lambda self, t: t.permute(0, 2, 3, 1).flatten(2),
)
module("module: matrices", "rasbt/LLMs-from-scratch", base=Matrices)
module("list of heads", "karpathy/ng-video-lecture", base=Heads)
module("list of heads, not causal", "karpathy/ng-video-lecture", base=Heads, causal=False)


class PerHead(nn.Module):
    """A matrix for each head, and einsum."""

    def __init__(self, causal: bool = True, **_: Any) -> None:
        super().__init__()
        for name in ("W_Q", "W_K", "W_V"):
            self.register_parameter(name, nn.Parameter(torch.randn(4, 32, 8) / 32**0.5))
        self.W_O, self.causal = nn.Parameter(torch.randn(4, 8, 32) / 32**0.5), causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,hde->bthe", x, w) for w in (self.W_Q, self.W_K, self.W_V))
        a = torch.einsum("bqhe,bkhe->bhqk", q, k) / 8**0.5
        if self.causal:
            a = torch.where(distance(a) >= 0, a, -1e5 * torch.ones(()))
        z = torch.einsum("bhqk,bkhe->bqhe", a.softmax(-1), v)
        return torch.einsum("bqhe,hed->bqd", z, self.W_O)


module("module: a matrix for each head", "TransformerLensOrg/TransformerLens", base=PerHead)
module(
    "module: a matrix for each head, not causal",
    "TransformerLensOrg/TransformerLens",
    base=PerHead,
    causal=False,
)


class Transposed(Matrices):
    """GPT-2's Conv1D: addmm with weights (in, out)."""

    def prepare(self) -> None:
        super().prepare()
        self.bias = nn.Parameter(torch.randn(4, 32))

    def project(self, x: Tensor) -> Any:
        weights = (self.W_query, self.W_key, self.W_value)
        return (
            torch.addmm(b, x.reshape(-1, 32), w).view(x.shape)
            for b, w in zip(self.bias, weights, strict=False)
        )


module("module: addmm", "GPT-2 in huggingface/transformers", base=Transposed)


class Strange(nn.Module):
    """Names that tell nothing, no biases, and a wide value."""

    def __init__(self, causal: bool = True, **_: Any) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Linear(32, 24, bias=False), nn.Linear(32, 24, bias=False)
        self.gamma, self.delta = nn.Linear(32, 80, bias=False), nn.Linear(80, 32, bias=False)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (
            layer(x).unflatten(-1, (4, -1)).transpose(1, 2)
            for layer in (self.alpha, self.beta, self.gamma)
        )
        return self.delta(attend(a, b, c, causal=self.causal).transpose(1, 2).flatten(2))


module("module: strange names, wide values", OWN, base=Strange)
module("module: strange names, wide values, not causal", OWN, base=Strange, causal=False)
module(
    "module: queries are keys",
    "Reformer, arXiv 2001.04451",
    prepare=lambda self: delattr(self, "k"),
    project=lambda self, x: (self.q(x), self.q(x), self.v(x)),
)
module(
    "module: shared keys and values",
    OWN,
    prepare=lambda self: delattr(self, "v"),
    project=lambda self, x: (self.q(x), self.k(x), self.k(x)),
)
module(
    "module: no output projection",
    OWN,
    causal=False,
    prepare=lambda self: delattr(self, "o"),
    after=lambda self, x, out: out,
)
module("module: one head", "Attention of lectures", options={"heads": 1})
module("library: causal", "pytorch/pytorch", base=Library, options={"batch_first": True})
module(
    "library: not causal",
    "pytorch/pytorch",
    base=Library,
    options={"batch_first": True},
    causal=False,
)


class Pair(Attention):
    """Returns the weights, too."""

    def forward(self, x: Tensor, mask: Any = None) -> Any:
        q, k, v = (self.split(t) for t in self.project(x))
        weights = hide(scores(q, k), allowed(scores(q, k), mask, self.causal, None)).softmax(-1)
        return self.o(self.merge(weights @ v)), weights


module("module: returns its weights", "huggingface/transformers", base=Pair)

# Ways to compute it


def stable(a: Tensor) -> Tensor:
    exponentials = (a - a.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def online(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Tiles of four keys, with a running maximum."""
    top = torch.full((*q.shape[:-1], 1), -torch.inf, dtype=q.dtype)
    total, out = torch.zeros_like(top), torch.zeros((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    far = distance(q @ k.mT)
    for start in range(0, k.shape[2], 4):
        tile = slice(start, start + 4)
        a = scores(q, k[:, :, tile])
        if causal:
            a = a.masked_fill(far[:, tile] < 0, -torch.inf)
        new = torch.maximum(top, a.amax(-1, keepdim=True))
        weights, old = (a - new).exp(), (top - new).exp()
        total, out = (
            total * old + weights.sum(-1, keepdim=True),
            out * old + weights @ v[:, :, tile],
        )
        top = new
    return out / total


def in_chunks(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Five queries at a time."""
    parts = []
    for start in range(0, q.shape[2], 5):
        part = q[:, :, start : start + 5]
        end = k.shape[2] - q.shape[2] + start + part.shape[2]
        keys, values = (k[:, :, :end], v[:, :, :end]) if causal else (k, v)
        parts.append(attend(part, keys, values, causal=causal))
    return torch.cat(parts, 2)


def masked_and_normalized(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    weights = scores(q, k).softmax(-1)
    weights = weights * (distance(weights) >= 0) if causal else weights
    return weights / weights.sum(-1, keepdim=True) @ v


def float_mask(value: Any) -> dict[str, Any]:
    def add(a: Tensor, may: Tensor) -> Tensor:
        low = torch.finfo(a.dtype).min if value is None else value
        return a + torch.zeros_like(a).masked_fill(~may, low)

    return {"hide": add}


function("softmax by hand", OWN, with_steps(softmax=stable), "causal", "mask")
function("running softmax in tiles", "FlashAttention, arXiv 2205.14135", online, "causal")
function("queries in chunks", "Memory-efficient attention, arXiv 2112.05682", in_chunks, "causal")
function(
    "masked after the softmax, normalized again",
    "rasbt/LLMs-from-scratch#279",
    masked_and_normalized,
    "causal",
    skip=("sharp",),
)
function(
    "a mask of -inf is added", "pytorch/pytorch", with_steps(**float_mask(-torch.inf)), "causal"
)
function("a mask of -1e9 is added", "tensor2tensor", with_steps(**float_mask(-1e9)), "causal")
module(
    "module: a mask of the least number is added",
    "huggingface/transformers",
    steps=float_mask(None),
)
module(
    "module: -1e9",
    "hyunwoongko/transformer",
    steps={"hide": lambda a, may: a.masked_fill(~may, -1e9)},
)
module(
    "module: scaled_dot_product_attention",
    "karpathy/nanoGPT",
    base=Fused,
    core=lambda self, q, k, v, mask=None: functional.scaled_dot_product_attention(
        q, k, v, is_causal=True
    ),
)
module(
    "module: mask of a registered buffer",
    "karpathy/minGPT",
    prepare=lambda self: self.register_buffer(
        "tril", torch.ones(256, 256, dtype=torch.bool).tril()
    ),
    core=lambda self, q, k, v, mask=None: (
        scores(q, k).masked_fill(~self.tril[: q.shape[2], : q.shape[2]], -torch.inf).softmax(-1) @ v
    ),
)
function(
    "softmax in at least float32",
    "Llama in huggingface/transformers",
    with_steps(
        softmax=lambda a: a.softmax(-1, dtype=torch.promote_types(a.dtype, torch.float32)).to(
            a.dtype
        )
    ),
    "causal",
)
function(
    "(batch, tokens, heads, dim)",
    "Dao-AILab/flash-attention",
    lambda q, k, v, **o: attend(*(t.transpose(1, 2) for t in (q, k, v)), **o).transpose(1, 2),
    "causal",
    "mask",
    layout="bthd",
)
function(
    "packed",
    OWN,
    lambda q, k, v, **o: (
        attend(split_four(q), split_four(k), split_four(v), **o).transpose(1, 2).flatten(2)
    ),
    "causal",
    **PACKED,
)
function(
    "True means masked",
    "pytorch/pytorch",
    lambda q, k, v, mask=None: attend(q, k, v, mask=None if mask is None else ~mask),
    "mask",
    mask_true="masked",
)


def numpy_attention(q: Any, k: Any, v: Any, *, causal: bool = False) -> Any:
    a = np.einsum("bhqd,bhkd->bhqk", q, k) / np.sqrt(q.shape[-1])
    if causal:
        n, m = a.shape[-2:]
        a = np.where(np.arange(m) <= np.arange(m - n, m)[:, None], a, -np.inf)
    weights = np.exp(a - a.max(-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), v)


def jax_attention(q: Any, k: Any, v: Any, *, causal: bool = False) -> Any:
    a = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        n, m = a.shape[-2:]
        a = a + jnp.triu(jnp.full((n, m), -jnp.inf), 1 + m - n)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(a), v)


def jax_window(q: Any, k: Any, v: Any) -> Any:
    far = jnp.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2] - jnp.arange(k.shape[2])
    a = jnp.where(
        (far >= 0) & (far < 4), q @ jnp.swapaxes(k, -1, -2) / q.shape[-1] ** 0.5, -jnp.inf
    )
    return jax.nn.softmax(a) @ v


function("NumPy", OWN, numpy_attention, "causal", engine="numpy")
function("JAX", OWN, jax_attention, "causal", engine="jax")
function("JAX: sliding window", OWN, jax_window, engine="jax", causal=True, window=4)

# Around the attention


class Short(Attention):
    """A convolution that sees earlier tokens only."""

    def prepare(self) -> None:
        self.conv = nn.Conv1d(32, 32, 3, groups=32)

    def before(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x.mT, (2, 0))).mT


def shifted(self: Any, x: Tensor) -> Tensor:
    earlier = functional.pad(x, (0, 0, 1, 0))[:, :-1]
    return torch.cat([earlier[..., :16], x[..., 16:]], -1)


module(
    "module: causal convolution", "fla-org/flash-linear-attention", declared=POSITIONS, base=Short
)
module(
    "module: convolution of keys",
    "Primer, arXiv 2109.08668",
    declared=POSITIONS,
    base=Short,
    before=lambda self, x: x,
    project=lambda self, x: (self.q(x), Short.before(self, self.k(x)), self.v(x)),
)
module("module: token shift", "BlinkDL/RWKV-LM", declared=POSITIONS, before=shifted)
module(
    "module: value residual",
    "Value residual, arXiv 2410.17897",
    prepare=lambda self: setattr(self, "v0", nn.Linear(32, 32)),
    project=lambda self, x: (self.q(x), self.k(x), 0.5 * self.v(x) + 0.5 * self.v0(x)),
)


class Talking(Attention):
    """The scores of the heads are mixed before the softmax, and the weights after it."""

    def prepare(self) -> None:
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Parameter(torch.randn(4, 4))

    def core(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        a = self.one(scores(q, k).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = hide(a, allowed(a, mask, self.causal, None)).softmax(-1)
        return torch.einsum("gh,bhqk->bgqk", self.two.softmax(-1), weights) @ v


module("module: talking heads", "Talking-heads attention, arXiv 2003.02436", base=Talking)


class Block(nn.Module):
    """A pre-norm block, or a post-norm or a parallel one."""

    def __init__(self, form: str = "pre", causal: bool = True, **_: Any) -> None:
        super().__init__()
        self.form, self.attention = form, Attention(32, causal=causal)
        self.ln_1, self.ln_2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "pre":
            x = x + self.attention(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))
        if self.form == "post":
            x = self.ln_1(x + self.attention(x))
            return self.ln_2(x + self.mlp(x))
        return x + self.attention(self.ln_1(x)) + self.mlp(self.ln_2(x))


for form, paper in (
    ("pre", "GPT-2"),
    ("post", "Vaswani 2017, arXiv 1706.03762"),
    ("parallel", "GPT-J"),
):
    module(
        f"block: {form}",
        paper,
        base=Block,
        options={"form": form},
        declared={"block": True},
        causal=form != "post",
    )


class NormedHeads(Attention):
    """RetNet, differential transformer: a norm of each head's output, token by token."""

    def prepare(self) -> None:
        self.norm = nn.GroupNorm(4, 32)

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        return self.o(self.norm(out.flatten(0, 1)).view(out.shape))


module(
    "module: norm of each head's output",
    "RetNet, arXiv 2307.08621",
    declared={"block": True},
    base=NormedHeads,
)
module(
    "module: norm before",
    OWN,
    declared={"block": True},
    prepare=lambda self: setattr(self, "norm", nn.LayerNorm(32)),
    before=lambda self, x: self.norm(x),
)

# Dropout, caches, models

module("module: dropout", "karpathy/minGPT", "dropout", options={"dropout": 0.2})
module(
    "module: dropout of scaled_dot_product_attention",
    "karpathy/nanoGPT#240",
    "dropout",
    causal=False,
    options={"dropout": 0.2},
    core=lambda self, q, k, v, mask=None: functional.scaled_dot_product_attention(
        q, k, v, dropout_p=self.p if self.training else 0.0
    ),
)
module(
    "module: dropout by nn.Dropout",
    OWN,
    "dropout",
    prepare=lambda self: setattr(self, "dropout", nn.Dropout(0.3)),
    core=lambda self, q, k, v, mask=None: (
        self.dropout(hide(scores(q, k), distance(q @ k.mT) >= 0).softmax(-1)) @ v
    ),
)
module("module: cache", "GPT-2 in huggingface/transformers", "cache")
module("module: mask and cache", OWN, "mask", "cache")
function(
    "everything",
    OWN,
    attend,
    "mask",
    "causal",
    "window",
    "softcap",
    "dropout",
    "positions",
    "cache",
    heads=4,
    kv_heads=2,
)
model(
    "model: padding on the left",
    "GPT-2 in huggingface/transformers",
    "mask",
    "cache",
    "labels",
    "tied",
)
model("model: documents", OWN, "documents", "labels")
model("model: not tied", "Llama, arXiv 2302.13971", "labels", tie=lambda self: None)
model(
    "model: rotary, no other positions",
    "Llama, arXiv 2302.13971",
    "cache",
    positions=lambda self, tokens, mask, past: torch.zeros(tokens.shape[1], dtype=torch.long),
    layer={"place": turned_from},
)
model(
    "model: no positions",
    "NoPE, arXiv 2305.19466",
    "mask",
    "cache",
    positions=lambda self, tokens, mask, past: torch.zeros(tokens.shape[1], dtype=torch.long),
)


def capped(self: Any, tokens: Tensor, cache: Any = False) -> Any:
    if cache is False:
        return softcap(30.0)(Model.forward(self, tokens))
    logits, cache = Model.forward(self, tokens, cache=cache)
    return softcap(30.0)(logits), cache


model("model: logits are capped", "Gemma 2, arXiv 2408.00118", "cache", forward=capped)
