"""Faulty attentions for a trial of the doctor: it must find each fault and name it.

They were written without a look at the checks. Most faults were reported publicly (`source`);
the code is our own. A variant is the right attention of this file with one step replaced.
`declared` is what a user declares who believes the code to be right; `expected` is a regular
expression (without regard to case) that a right diagnosis matches; a diagnosis that matches
`false` states something that is not so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

OWN = "own practice"
NOTHING = r"(?!)"  # matches nothing


@dataclass(frozen=True)
class Variant:
    name: str
    attention: Any
    declared: dict[str, Any]
    expected: str
    false: str
    source: str


VARIANTS: list[Variant] = []

# The right attention, in steps


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (i, i + d/2) by angles (tokens, d/2)."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1)."""
    first, second = x[..., ::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.stack(turned, -1).flatten(-2)


def angles(positions: Tensor, like: Tensor, base: float = 10000.0) -> Tensor:
    half = like.shape[-1] // 2
    return positions[:, None] * base ** (-torch.arange(half, dtype=like.dtype) / half)


def turn(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return rotate(q, angles(positions, q)), rotate(k, angles(positions, k)), v


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5


def distance(a: Tensor) -> Tensor:
    """How far each key lies behind each query; the last query is beside the last key."""
    n, m = a.shape[-2:]
    return torch.arange(m - n, m)[:, None] - torch.arange(m)


def of_keys(mask: Tensor) -> Tensor:
    return mask[:, None, None, :] if mask.ndim == 2 else mask


def allowed(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
    may = torch.ones_like(a, dtype=torch.bool)
    if causal or window is not None:
        may = may & (distance(a) >= 0)
    if window is not None:
        may = may & (distance(a) < window)
    return may if mask is None else may & of_keys(mask)


def hide(a: Tensor, may: Tensor) -> Tensor:
    return a.masked_fill(~may, -torch.inf).masked_fill(~may.any(-1, keepdim=True), 0.0)


def revive(weights: Tensor, may: Tensor) -> Tensor:
    return weights.masked_fill(~may.any(-1, keepdim=True), 0.0)


def dropped(t: Tensor, p: float, training: bool = True) -> Tensor:
    return nn.functional.dropout(t, p, training)


@dataclass(frozen=True)
class Steps:
    prepare: Callable[..., Any] = lambda q, k, v: (q, k, v)
    turn: Callable[..., Any] = turn
    repeat: Callable[..., Any] = lambda k, v, n: (
        k.repeat_interleave(n, 1),
        v.repeat_interleave(n, 1),
    )
    scores: Callable[..., Tensor] = scores
    cap: Callable[..., Tensor] = lambda a, c, q: c * (a / c).tanh()
    cap_last: bool = False
    allowed: Callable[..., Tensor] = allowed
    hide: Callable[..., Tensor] = hide
    softmax: Callable[..., Tensor] = lambda a: a.softmax(-1)
    revive: Callable[..., Tensor] = revive
    drop: Callable[..., Tensor] = lambda weights, p: dropped(weights, p) if p else weights
    mix: Callable[..., Tensor] = lambda weights, v: weights @ v


RIGHT = Steps()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Any = None,
    causal: bool = False,
    window: Any = None,
    softcap: Any = None,
    dropout: float = 0.0,
    positions: Any = None,
    steps: Steps = RIGHT,
) -> Tensor:
    q, k, v = steps.prepare(q, k, v)
    if positions is not None:
        q, k, v = steps.turn(q, k, v, positions)
    k, v = steps.repeat(k, v, q.shape[1] // k.shape[1])
    a = steps.scores(q, k)
    if softcap is not None and not steps.cap_last:
        a = steps.cap(a, softcap, q)
    may = steps.allowed(a, mask, causal, window)
    a = steps.hide(a, may)
    if softcap is not None and steps.cap_last:
        a = steps.cap(a, softcap, q)
    weights = steps.revive(steps.softmax(a), may)
    return steps.mix(steps.drop(weights, dropout), v)


class Attention(nn.Module):
    """Self-attention of x (batch, tokens, width)."""

    def __init__(
        self,
        width: int = 32,
        heads: int = 4,
        kv_heads: int | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        steps: Steps = RIGHT,
    ) -> None:
        super().__init__()
        self.width, self.heads, self.head_dim = width, heads, width // heads
        self.causal, self.p, self.steps = causal, dropout, steps
        inner = (kv_heads or heads) * self.head_dim
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, inner)
        self.v, self.o = nn.Linear(width, inner), nn.Linear(width, width)
        self.prepare()

    def prepare(self) -> None:
        """Further parameters of a variant."""

    def before(self, x: Tensor) -> Tensor:
        return x

    def project(self, x: Tensor) -> Any:
        return self.q(x), self.k(x), self.v(x)

    def split(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def place(self, q: Tensor, k: Tensor, past: int) -> Any:
        return q, k

    def remember(self, k: Tensor, v: Tensor, cache: Any) -> Any:
        return torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)

    def core(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        p = self.p if self.training else 0.0
        return attend(q, k, v, mask=mask, causal=self.causal, dropout=p, steps=self.steps)

    def merge(self, t: Tensor) -> Tensor:
        return t.transpose(1, 2).flatten(2)

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        return self.o(out)

    def forward(self, x: Tensor, mask: Any = None, cache: Any = False) -> Any:
        x = self.before(x)
        q, k, v = (self.split(t) for t in self.project(x))
        past = cache[0].shape[2] if isinstance(cache, tuple) else 0
        q, k = self.place(q, k, past)
        if isinstance(cache, tuple):
            k, v = self.remember(k, v, cache)
        out = self.after(x, self.merge(self.core(q, k, v, mask)))
        return out if cache is False else (out, (k, v))


class Model(nn.Module):
    """A small language model with learned positions and tied weights."""

    def __init__(self, vocabulary: int = 50, width: int = 32, layer: type = Attention) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(256, width)
        self.attention = layer(width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.tie()

    def tie(self) -> None:
        self.head.weight = self.embedding.weight

    def positions(self, tokens: Tensor, mask: Any, past: int) -> Tensor:
        if mask is None:
            return torch.arange(past, past + tokens.shape[1])
        return (mask.long().cumsum(-1) - 1).clamp(min=0)

    def visible(self, mask: Any, documents: Any) -> Any:
        if documents is None:
            return mask
        return (documents[:, :, None] == documents[:, None])[:, None]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def forward(
        self,
        tokens: Tensor,
        mask: Any = None,
        documents: Any = None,
        labels: Any = None,
        cache: Any = False,
    ) -> Any:
        past = cache[0].shape[2] if isinstance(cache, tuple) else 0
        x = self.embedding(tokens) + self.position(self.positions(tokens, mask, past))
        out = self.attention(x, self.visible(mask, documents), cache)
        out, cache = out if cache is not False else (out, cache)
        x = x + out
        logits = self.head(x + self.mlp(x))
        if labels is not None:
            return self.loss(logits, labels)
        return logits if cache is False else (logits, cache)


# How a variant is made


def build(base: type, *args: Any, methods: dict[str, Any] | None = None, **options: Any) -> Any:
    """An instance of `base` with some methods replaced, always with the same parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return type("Module", (base,), methods or {})(*args, **options)


def add(name: str, attention: Any, declared: Any, expected: str, false: str, source: str) -> None:
    VARIANTS.append(Variant(name, attention, declared, expected, false, source))


def function(
    name: str,
    expected: str,
    source: str,
    *features: str,
    false: str = NOTHING,
    declared: dict[str, Any] | None = None,
    call: Any = None,
    **steps: Any,
) -> None:
    """A function of queries, keys and values (batch, heads, tokens, dim)."""
    changed = replace(RIGHT, **steps)

    def attention(q: Any, k: Any, v: Any, **options: Any) -> Any:
        return attend(q, k, v, steps=changed, **options)

    whole = {"kind": "qkv", "engine": "torch", "features": features, **(declared or {})}
    add(name, call or attention, whole, expected, false, source)


def module(
    name: str,
    expected: str,
    source: str,
    *features: str,
    false: str = NOTHING,
    causal: bool = True,
    declared: dict[str, Any] | None = None,
    steps: dict[str, Any] | None = None,
    base: type = Attention,
    options: dict[str, Any] | None = None,
    **methods: Any,
) -> None:
    """A module of x (batch, tokens, width)."""
    changed = replace(RIGHT, **(steps or {}))
    attention = build(base, causal=causal, steps=changed, methods=methods, **(options or {}))
    whole = {"kind": "self", "width": 32, "causal": causal, "features": features}
    add(name, attention, {**whole, **(declared or {})}, expected, false, source)


def model(name: str, expected: str, source: str, *features: str, **options: Any) -> None:
    """A language model of tokens (batch, tokens)."""
    layer, false = options.pop("layer", {}), options.pop("false", NOTHING)
    attention = build(Model, layer=type("Layer", (Attention,), layer), methods=options)
    whole = {"kind": "model", "vocabulary": 50, "causal": True, "features": features}
    add(name, attention, whole, expected, false, source)


# Words of several expectations


def any_of(*parts: str) -> str:
    return "|".join(parts)


VIEW = r"without a transpose|heads are (split|merged)"
NO_MASK = r"no causal mask(?![^.]*\bor\b)"  # "no mask, or one after the softmax" may be so
SOFTMAX = r"softmax (runs )?over"
FLIPPED = r"^the mask is (reversed|inverted)(?![^.]*\bor\b)"

NO_CAUSAL = any_of(
    r"no causal|not causal|attends? to (the )?(later|future)|sees? (the )?(later|future)",
    r"causal[^.]*(missing|ignored|not (applied|in force|used)|does nothing|no effect)",
    r"(later|future) tokens",
)
FINITE = (
    r"finite|low enough|too (small|weak|high|large)|-inf|zeros?\b|\b0(\.0)?\b (instead|in place)"
    r"|multipl|\badd(s|ed)?\b"
)
AFTER = r"after (the )?softmax|(not|never) (re-?)?normali[sz]ed( again)?|sums? to (less|1)"
OUTSIDE = any_of(
    r"outside|beside (the )?(mask|attention)|(before|without) (the )?attention|something else",
    r"not (from |through |by |in )?(the )?(mask|attention weights)|statistic|\bmean\b|averag|pool",
    r"norm(al|\b)|convolution|neighbou?r|over (the )?(tokens|sequence|text)",
)
NOT_SCALED = any_of(
    r"(not|never|un) ?-?scaled|no(t| )[^.]*(scal|divi)|missing[^.]*(scale|scaling|sqrt)",
    r"(scale|factor|division|1/sqrt)[^.]*(missing|forgotten|is 1\b)|factor (of )?1(\.0+)?\b",
    r"without (a |the )?(scale|scaling|1/sqrt|division)",
)
BY_WIDTH = (
    r"width|d_model|all heads|embed|model dim|heads \* |whole dim|channels|instead of (the )?head"
    r"|not (the )?(head|d_k)"
)
TWICE = r"twice|two times|1/d\b|1/d_k|1/head_dim|already|again|pre-?scaled|squared"
MIXED = r"transpos|\bview\b|reshape|permut|tokens and (features|heads)|(features|heads) and tokens"
QUERY_AXIS = any_of(
    r"quer(y|ies)[^.]*(axis|instead|in place|rather)|(axis|rows) of (the )?quer",
    r"over (the )?quer|column",
)
OTHER_ROW = any_of(
    r"batch|another row|other rows?|wrong row|repeat_interleave|interleav|tiled",
    r"of another (sample|sequence)",
)
NAN = r"\bnan"

# Softmax over another axis

function(
    "softmax over queries",
    QUERY_AXIS,
    "labmlai/annotated_deep_learning_paper_implementations#146",
    softmax=lambda a: a.softmax(-2),
    false=any_of(r"over (the )?(heads|batch)", VIEW),
)
function(
    "softmax of axis 2 of four, causal",
    QUERY_AXIS,
    "FudanNLP/fastNLP#254",
    "causal",
    softmax=lambda a: a.softmax(2).nan_to_num(),
    false=any_of(r"over (the )?(heads|batch)", VIEW),
)
function(
    "softmax without an axis",
    r"over (the )?heads|heads?[ -](axis|dim)|axis of (the )?heads",
    OWN,
    softmax=lambda a: nn.functional.softmax(a, 1),  # PyTorch's old choice for four axes
    false=any_of(r"over (the )?(quer|batch)", "query axis"),
)
function(
    "softmax over the batch",
    r"over (the )?batch|batch[ -](axis|dim)|axis of (the )?batch",
    "PetrochukM/PyTorch-NLP#2",
    softmax=lambda a: a.softmax(0),
    false=any_of(r"over (the )?(quer|heads)", "query axis"),
)
function(
    "one softmax for all queries",
    any_of(
        r"all (the )?quer|quer(y|ies)[^.]*(share|together|axis|depend)|flatten",
        r"whole (matrix|table)|one softmax",
    ),
    OWN,
    softmax=lambda a: a.flatten(2).softmax(-1).view_as(a),
    false=r"over (the )?(heads|batch)",
)
module(
    "module: softmax over queries",
    QUERY_AXIS,
    "labmlai/annotated_deep_learning_paper_implementations#146",
    causal=False,
    steps={"softmax": lambda a: a.softmax(-2)},
    false=any_of(r"over (the )?(heads|batch)", VIEW),
)
module(
    "causal module: softmax over queries",
    QUERY_AXIS,
    "FudanNLP/fastNLP#254",
    steps={"softmax": lambda a: a.softmax(2)},
    false=any_of(r"over (the )?(heads|batch)", VIEW, NO_MASK),
)
module(
    "causal module: softmax over heads",
    r"over (the )?heads|heads?[ -](axis|dim)|axis of (the )?heads",
    OWN,
    steps={"softmax": lambda a: a.softmax(1).nan_to_num()},
    false=any_of(r"over (the )?(quer|batch)", "query axis", NO_MASK),
)
module(
    "module: softmax over the batch",
    r"over (the )?batch|batch[ -](axis|dim)|axis of (the )?batch",
    "PetrochukM/PyTorch-NLP#2",
    causal=False,
    steps={"softmax": lambda a: a.softmax(0)},
    false=any_of(r"over (the )?(quer|heads)", "query axis"),
)


def per_head(self: Any, x: Tensor) -> Any:
    return (t.unflatten(-1, (-1, self.head_dim)) for t in (self.q(x), self.k(x), self.v(x)))


module(
    "module: heads attend to heads",  # (batch, tokens, heads, dim) without a transpose
    r"head|transpos",
    OWN,
    causal=False,
    project=per_head,
    split=lambda self, t: t,
    merge=lambda self, t: t.flatten(2),
    false=any_of("over the query axis", "mask"),
)

# Scale

function(
    "not scaled",
    NOT_SCALED,
    "PAIR-code/tiny-transformers#71",
    scores=lambda q, k: q @ k.mT,
    false=any_of("twice", VIEW, r"1/d\b"),
)
function(
    "divided by d",
    TWICE,
    "delzac/cntkx#10",
    scores=lambda q, k: q @ k.mT / q.shape[-1],
    false=any_of("not scaled", VIEW),
)
function(
    "multiplied by sqrt(d)",
    any_of(
        r"multipl|times sqrt|\* ?sqrt|\* ?d_k|instead of (being )?divided",
        r"divided by (the )?(scale|1/sqrt)|inverse",
    ),
    "esceptico/perceiver-io#9",
    scores=lambda q, k: q @ k.mT * q.shape[-1] ** 0.5,
    false=any_of("twice", VIEW),
)
function(
    "scaled by all heads",
    BY_WIDTH,
    "lucidrains/vit-pytorch#65",
    scores=lambda q, k: q @ k.mT / (q.shape[1] * q.shape[-1]) ** 0.5,
    false=any_of("twice", VIEW, "not scaled"),
)
function(
    "scaled by the tokens",
    r"token|length|number of (the )?keys|count of (the )?keys",
    OWN,
    scores=lambda q, k: q @ k.mT / k.shape[-2] ** 0.5,
    false=any_of("twice", VIEW),
)
function(
    "scaled before scaled_dot_product_attention",
    TWICE,
    "huggingface/transformers#38290",
    call=lambda q, k, v: scaled_dot_product_attention(q * q.shape[-1] ** -0.5, k, v),
    false=any_of("not scaled", VIEW),
)
function(
    "a default scale of 0",
    any_of(
        r"uniform|no influence|ignored|(scale|factor)[^.]*\b0(\.0+)?\b",
        r"mean of (the |all )?values|do(es)? not matter|queries[^.]*(unused|not used)",
    ),
    "SKaiNET-developers/SKaiNET#880",
    scores=lambda q, k: q @ k.mT * 0.0,
    false=any_of("twice", VIEW),
)
function(
    "the root of the root, only on queries",
    r"scale|factor|sqrt|root",
    OWN,
    scores=lambda q, k: q * q.shape[-1] ** -0.25 @ k.mT,
    false=any_of("not scaled", "twice", VIEW),
)


def scaled_again_in_each_tile(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale, out, total = q.shape[-1] ** -0.5, 0.0, 0.0
    for keys, values in zip(k.split(4, 2), v.split(4, 2), strict=True):
        scale = scale * 1.5
        weights = (q @ keys.mT * scale / 1.5).exp()
        out, total = out + weights @ values, total + weights.sum(-1, keepdim=True)
    return out / total


function(
    "scaled again in each tile",
    any_of(
        r"tile|block|chunk|place of (the )?keys?|order of (the )?keys|number of (the )?keys",
        r"position|length",
    ),
    "flagos-ai/FlagGems#424",
    call=scaled_again_in_each_tile,
    false=any_of("not scaled", VIEW),
)

module(
    "module: not scaled",
    NOT_SCALED,
    "mlc-ai/mlc-llm#3426",
    causal=False,
    steps={"scores": lambda q, k: q @ k.mT},
    false=any_of("twice", VIEW, r"1/d\b"),
)
module(
    "causal module: not scaled",
    NOT_SCALED,
    "pytorch/torchtitan#2173",
    steps={"scores": lambda q, k: q @ k.mT},
    false=any_of("twice", VIEW, NO_MASK),
)
module(
    "module: divided by d",
    TWICE,
    "duoan/TorchCode#17",
    steps={"scores": lambda q, k: q @ k.mT / q.shape[-1]},
    false=any_of("not scaled", VIEW, NO_MASK),
)
module(
    "module: multiplied by sqrt(d)",
    any_of(
        r"multipl|times sqrt|\* ?sqrt|\* ?d_k|instead of (being )?divided",
        r"divided by (the )?(scale|1/sqrt)|inverse",
    ),
    "esceptico/perceiver-io#9",
    causal=False,
    steps={"scores": lambda q, k: q @ k.mT / q.shape[-1] ** -0.5},
    false=any_of("twice", VIEW),
)
module(
    "module: scaled by the width",
    BY_WIDTH,
    "karpathy/ng-video-lecture#6",
    steps={"scores": lambda q, k: q @ k.mT * 32**-0.5},
    false=any_of("twice", VIEW, "not scaled", NO_MASK),
)
module(
    "module: scaled by the tokens",
    r"token|length|number of (the )?keys|count of (the )?keys",
    OWN,
    causal=False,
    steps={"scores": lambda q, k: q @ k.mT / q.shape[-2] ** 0.5},
    false=any_of("twice", VIEW),
)


class Fused(Attention):
    """One layer for queries, keys and values, in thirds."""

    def prepare(self) -> None:
        del self.q, self.k, self.v
        self.qkv = nn.Linear(self.width, 3 * self.width, bias=False)

    def project(self, x: Tensor) -> Any:
        return self.qkv(x).chunk(3, -1)


class Matrices(Attention):
    """Parameters that are used as x @ W."""

    def prepare(self) -> None:
        del self.q, self.k, self.v, self.o
        for name in ("W_query", "W_key", "W_value", "W_out"):
            self.register_parameter(name, nn.Parameter(torch.randn(32, 32) / 32**0.5))

    def project(self, x: Tensor) -> Any:
        return x @ self.W_query, x @ self.W_key, x @ self.W_value

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        return out @ self.W_out


class Heads(nn.Module):
    """A list of small heads, as in many lectures."""

    def __init__(self, width: int = 32, heads: int = 4, causal: bool = True, **_: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(width, width // heads, bias=False) for n in "qkv"})
            for _ in range(heads)
        )
        self.proj, self.causal = nn.Linear(width, width), causal

    def factor(self, x: Tensor, k: Tensor) -> Any:
        return k.shape[-1] ** -0.5

    def head(self, part: Any, x: Tensor) -> Tensor:
        q, k, v = part["q"](x), part["k"](x), part["v"](x)
        a = q @ k.mT * self.factor(x, k)
        if self.causal:
            a = a.masked_fill(distance(a) < 0, -torch.inf)
        return a.softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat([self.head(part, x) for part in self.parts], -1))


module(
    "list of heads: scaled by the width",
    BY_WIDTH,
    "Graylab/DL4Proteins-notebooks#12",
    base=Heads,
    factor=lambda self, x, k: x.shape[-1] ** -0.5,
    false=any_of("twice", VIEW, "not scaled", NO_MASK),
)
module(
    "fused: not scaled",
    NOT_SCALED,
    "PAIR-code/tiny-transformers#71",
    base=Fused,
    steps={"scores": lambda q, k: q @ k.mT},
    false=any_of("twice", VIEW, NO_MASK),
)
module(
    "fused: scaled by the width",
    BY_WIDTH,
    "omihub777/ViT-CIFAR#11",
    base=Fused,
    causal=False,
    steps={"scores": lambda q, k: q @ k.mT / 32**0.5},
    false=any_of("twice", VIEW, "not scaled"),
)
module(
    "fused: scaled twice",
    TWICE,
    "huggingface/transformers#38290",
    base=Fused,
    core=lambda self, q, k, v, mask=None: scaled_dot_product_attention(
        q * self.head_dim**-0.5, k, v, is_causal=True
    ),
    false=any_of("not scaled", VIEW, NO_MASK),
)
module(
    "matrices: not scaled",
    NOT_SCALED,
    OWN,
    base=Matrices,
    causal=False,
    steps={"scores": lambda q, k: q @ k.mT},
    false=any_of("twice", VIEW),
)
module(
    "matrices: scaled by the width",
    BY_WIDTH,
    "FareedKhan-dev/train-llm-from-scratch#3",
    base=Matrices,
    steps={"scores": lambda q, k: q @ k.mT / 32**0.5},
    false=any_of("twice", VIEW, "not scaled", NO_MASK),
)

# Heads split and merged


def packed(split: Any, merge: Any) -> Any:
    def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return merge(attend(split(q), split(k), split(v), **options))

    return attention


PACKED = {"layout": "packed", "heads": 4}


def split_four(t: Tensor) -> Tensor:
    return t.unflatten(-1, (4, -1)).transpose(1, 2)


def merge(t: Tensor) -> Tensor:
    return t.transpose(1, 2).flatten(2)


def merge_by_view(t: Tensor) -> Tensor:
    return t.reshape(t.shape[0], t.shape[2], -1)


def heads_before_batch(t: Tensor) -> Tensor:
    """(batch * heads, ...) is read as (heads, batch, ...)."""
    b, h, n, d = t.shape
    return t.reshape(h, b, n, d).permute(0, 2, 1, 3).reshape(b, n, h * d)


FALSE_OF_MIXED = any_of(SOFTMAX, "query axis", "mask is")
function(
    "packed: split by a view",
    MIXED,
    "reczoo/FuxiCTR#30",
    declared=PACKED,
    call=packed(lambda t: t.reshape(t.shape[0], 4, t.shape[1], -1), merge),
    false=FALSE_OF_MIXED,
)
function(
    "packed: merged by a view",
    MIXED,
    "ajhalthor/Transformer-Neural-Network#4",
    declared=PACKED,
    call=packed(split_four, merge_by_view),
    false=FALSE_OF_MIXED,
)
function(
    "packed: heads before the batch",
    MIXED + r"|batch",
    "gazelle93/Transformer-Various-Positional-Encoding#1",
    declared=PACKED,
    call=packed(split_four, heads_before_batch),
    false=FALSE_OF_MIXED,
)
module(
    "causal module: split by a view",
    MIXED,
    "reczoo/FuxiCTR#30",
    split=lambda self, t: t.reshape(t.shape[0], 4, t.shape[1], -1),
    false=FALSE_OF_MIXED,
)
module(
    "module: merged by a view",
    MIXED,
    "meta-pytorch/opacus#825",
    causal=False,
    merge=lambda self, t: merge_by_view(t),
    false=FALSE_OF_MIXED,
)
module(
    "causal module: merged by a view",
    MIXED,
    "jsbaan/transformer-from-scratch#6",
    merge=lambda self, t: merge_by_view(t),
    false=any_of(FALSE_OF_MIXED, NO_MASK),
)

# Queries, keys and values exchanged or unused; heads

function(
    "keys and values exchanged",
    r"(keys?|values?)[^.]*(exchang|swap|order|confus|revers)|values?[^.]*(as|for|like) keys?",
    OWN,
    prepare=lambda q, k, v: (q, v, k),
    false=any_of(VIEW, "softmax over"),
)
function(
    "values are not used",
    any_of(
        r"values?[^.]*(unused|ignored|never|no (influence|gradient|effect)|do(es)? not|keys)",
        r"values?[^.]*not used",
        r"keys[^.]*values",
    ),
    "hmdolatabadi/denoising_diffusion#1",
    prepare=lambda q, k, v: (q, k, k),
    false=any_of(VIEW, "softmax over"),
)
function(
    "all heads use the first head's keys",
    r"head",
    OWN,
    prepare=lambda q, k, v: (q, k[:, :1].expand_as(k), v),
    false=any_of(VIEW, "softmax over"),
)
function(
    "heads are averaged",
    r"head",
    OWN,
    mix=lambda weights, v: (
        (weights @ v).mean(1, keepdim=True).expand(*weights.shape[:3], v.shape[-1])
    ),
    false=any_of(VIEW, "softmax over"),
)
module(
    "module: values are keys",
    r"values?|self\.v\b|\bv\.|unused|not used|never used|no gradient",
    "hmdolatabadi/denoising_diffusion#1",
    project=lambda self, x: (self.q(x), self.k(x), self.k(x)),
    false=any_of(NO_MASK, VIEW, "detach"),
)
module(
    "module: keys are queries",
    r"keys?|self\.k\b|\bk\.|unused|not used|never used|no gradient",
    OWN,
    causal=False,
    project=lambda self, x: (self.q(x), self.q(x), self.v(x)),
    false=any_of(VIEW, "detach"),
)
module(
    "module: the first head's result for all heads",
    r"head|unused|not used|never used|no gradient",
    OWN,
    merge=lambda self, t: t[:, :1].expand_as(t).transpose(1, 2).flatten(2),
    false=any_of(NO_MASK, VIEW, "detach"),
)
KV = {"heads": 4, "kv_heads": 2}
function(
    "kv heads tiled",
    r"til(e|ed|ing)\b|repeat|interleav|kv head|h %|wrong (kv )?head|group",
    "onnx/onnx#7274",
    declared=KV,
    repeat=lambda k, v, n: (k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1)),
    false=any_of(VIEW, "softmax over"),
)
function(
    "values tiled, keys not",
    any_of(
        r"values?[^.]*(head|til|repeat|interleav|group)|head[^.]*values?|til(e|ed)|repeat",
        r"interleav|kv head",
    ),
    "ekzhang/jax-js#180",
    declared=KV,
    repeat=lambda k, v, n: (k.repeat_interleave(n, 1), v.repeat(1, n, 1, 1)),
    false=any_of(VIEW, "softmax over"),
)
function(
    "a group reads the previous kv head",
    r"kv head|group|wrong head|another head",
    "FlashML-org/FreeToken#177",
    declared=KV,
    repeat=lambda k, v, n: tuple(
        t.repeat_interleave(n, 1)[:, torch.tensor([0, 1, 1, 3])] for t in (k, v)
    ),
    false=any_of(VIEW, "softmax over"),
)

# The causal mask


def causal_from(test: Callable[[Tensor], Tensor], **further: Any) -> dict[str, Any]:
    """Steps with another causal mask: test(distance) tells which keys are allowed."""

    def other(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
        may = allowed(a, mask, False, window)
        return may & test(distance(a)) if causal else may

    return {"allowed": other, **further}


def fill(value: float) -> dict[str, Any]:
    return {"hide": lambda a, may: a.masked_fill(~may, value), "revive": lambda w, may: w}


SHIFTED = r"shift|off[- ]by[- ]one|diagonal|next token|one (token )?too (far|late|early)|the next"
FALSE_OF_CAUSAL = any_of(
    "transpose back", r"softmax (runs )?over (the )?(quer|heads)", "query axis"
)
function(
    "causal does nothing",
    NO_CAUSAL,
    "alex-matton/causal-transformer-decoder#1",
    "causal",
    allowed=lambda a, mask, causal, window: allowed(a, mask, False, window),
    false=FALSE_OF_CAUSAL,
)
function(
    "causal, and the next token",
    SHIFTED,
    OWN,
    "causal",
    **causal_from(lambda d: d >= -1),
    false=any_of(FALSE_OF_CAUSAL, NO_MASK),
)
function(
    "causal, without itself",
    r"itself|own (token|position|key)|diagonal|shift|strict",
    OWN,
    "causal",
    **causal_from(lambda d: (d > 0) | (d == 0) & (d.amax(-1, keepdim=True) == 0)),
    false=any_of(FALSE_OF_CAUSAL, NO_MASK),
)
function(
    "causal reversed",
    any_of(
        r"revers|invert|opposite|wrong (way|direction|triangle|half)|upper|triu|negat",
        r"(later|future) (tokens |keys )?only|only (the )?(later|future)",
    ),
    "hkproj/pytorch-transformer#19",
    "causal",
    **causal_from(lambda d: d < 0),
    false=FALSE_OF_CAUSAL,
)
function(
    "causal transposed",
    any_of(
        r"revers|invert|opposite|transposed|wrong (way|direction|triangle|half)|upper|triu",
        r"(later|future) (tokens |keys )?only|only (the )?(later|future)",
    ),
    OWN,
    "causal",
    **causal_from(lambda d: d <= 0),
    false=FALSE_OF_CAUSAL,
)
function(
    "causal after the softmax",
    AFTER,
    "huggingface/pytorch-image-models#2236",
    "causal",
    hide=lambda a, may: a,
    revive=lambda weights, may: weights * may,
    false=any_of(FALSE_OF_CAUSAL, NO_MASK),
)
function(
    "scores times the triangle",
    FINITE,
    OWN,
    "causal",
    hide=lambda a, may: a * may,
    false=any_of(FALSE_OF_CAUSAL, NO_MASK),
)
function(
    "the triangle of 1 and 0 is added",
    FINITE,
    "huggingface/transformers#41443",
    "causal",
    hide=lambda a, may: a + may.to(a.dtype),
    false=any_of(FALSE_OF_CAUSAL, NO_MASK),
)
for value, where in ((-1.0, OWN), (-10.0, OWN), (1e-9, "awslabs/gluonts#1401")):
    function(
        f"causal by {value:g}",
        FINITE,
        where,
        "causal",
        **fill(value),
        false=any_of(FALSE_OF_CAUSAL, NO_MASK),
    )


def only_head(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
    first = torch.arange(a.shape[1])[:, None, None] == 0
    return allowed(a, mask, causal, window) | ~first


def only_row(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
    first = torch.arange(a.shape[0])[:, None, None, None] == 0
    return allowed(a, mask, causal, window) | ~first


def only_short(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
    return allowed(a, mask, causal, window) | (torch.arange(a.shape[-2])[:, None] >= 8)


function(
    "causal in the first head only",
    r"head",
    OWN,
    "causal",
    allowed=only_head,
    false=FALSE_OF_CAUSAL,
)
function(
    "causal in the first batch row only",
    r"batch|row",
    OWN,
    "causal",
    allowed=only_row,
    false=FALSE_OF_CAUSAL,
)
module(
    "module: no causal mask",
    NO_CAUSAL,
    "huggingface/transformers#48745",
    options={},
    core=lambda self, q, k, v, mask=None: attend(q, k, v),
    false=FALSE_OF_CAUSAL,
)
module(
    "module: and the next token",
    SHIFTED,
    OWN,
    steps=causal_from(lambda d: d >= -1),
    false=FALSE_OF_CAUSAL,
)
module(
    "module: without itself",
    r"itself|own (token|position|key)|diagonal|shift|strict",
    OWN,
    steps=causal_from(lambda d: d > 0),
    false=any_of(FALSE_OF_CAUSAL, NO_MASK),
)
module(
    "module: causal reversed",
    any_of(
        r"revers|invert|opposite|transposed|wrong (way|direction|triangle|half)|upper|triu",
        r"negat|(later|future) (tokens |keys )?only|only (the )?(later|future)",
    ),
    "hkproj/pytorch-transformer#19",
    steps=causal_from(lambda d: d <= 0),
    false=FALSE_OF_CAUSAL,
)
module(
    "module: causal after the softmax",
    AFTER,
    "huggingface/pytorch-image-models#2236",
    steps={"hide": lambda a, may: a, "revive": lambda weights, may: weights * may},
    false=any_of(FALSE_OF_CAUSAL, NO_MASK),
)
module(
    "module: causal by 1e-9",
    FINITE,
    "awslabs/gluonts#1401",
    steps=fill(1e-9),
    false=any_of(FALSE_OF_CAUSAL, NO_MASK),
)
module(
    "module: causal by -10", FINITE, OWN, steps=fill(-10.0), false=any_of(FALSE_OF_CAUSAL, NO_MASK)
)
module(
    "module: causal in the first 8 tokens",
    any_of(
        r"length|beyond|long|buffer|fixed|first \d+ tokens|from token",
        r"(after|past|more than) (token )?\d+",
    ),
    OWN,
    steps={"allowed": only_short},
    false=FALSE_OF_CAUSAL,
)
module(
    "module: causal in the first head",
    r"head|later|future",
    OWN,
    steps={"allowed": only_head},
    false=any_of(FALSE_OF_CAUSAL, VIEW),
)
module(
    "module: no mask in training, with dropout",
    r"train",
    "keras-team/keras#23038",
    "dropout",
    options={"dropout": 0.3},
    core=lambda self, q, k, v, mask=None: attend(
        q, k, v, causal=not self.training, dropout=0.3 if self.training else 0.0
    ),
    false=FALSE_OF_CAUSAL,
)

# Padding masks

MASKED = {"hide": lambda a, may: a.masked_fill(~may, -torch.inf)}


def mask_by(change: Callable[..., Any]) -> dict[str, Any]:
    """Steps in which another mask is used: change(mask, scores)."""

    def other(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
        return allowed(a, None if mask is None else change(mask, a), causal, window)

    return {"allowed": other}


def tiled(mask: Tensor, a: Tensor) -> Tensor:
    """Correct for (heads * batch), but scores are (batch * heads)."""
    b, h = a.shape[:2]
    return mask.repeat(h, 1).view(b, h, 1, -1)


def on_queries(mask: Tensor, a: Tensor) -> Tensor:
    n = a.shape[-2]
    return (
        mask[:, None, : n or None, None]
        if n <= mask.shape[1]
        else nn.functional.pad(mask, (0, n - mask.shape[1]), value=True)[:, None, :, None]
    )


REVERSED = r"revers|invert|opposite|polarity|negat|flipped|True means|wrong way|mask_true"
FALSE_OF_WINDOW = any_of(SOFTMAX, VIEW)
IGNORED = any_of(
    r"(mask|padding|hidden|masked)[^.]*(ignored|not (applied|used|in force)|dropped|lost|gone)",
    r"(mask|padding|hidden|masked)[^.]*(no effect|does nothing)|without (the )?mask",
    r"(hidden|masked) keys[^.]*(take part|influence|seen)",
)
FALSE_OF_MASK = any_of(SOFTMAX, VIEW, "window")
function(
    "mask reversed",
    REVERSED,
    "InseeFrLab/torchTextClassifiers#92",
    "mask",
    **mask_by(lambda mask, a: ~mask),
    false=FALSE_OF_MASK,
)
function(
    "mask on the queries",
    QUERY_AXIS + r"|not (the )?keys",
    "hyunwoongko/transformer#40",
    "mask",
    **mask_by(on_queries),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "mask of the next batch row",
    OTHER_ROW,
    OWN,
    "mask",
    **mask_by(lambda mask, a: mask.roll(1, 0)),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "mask of the first batch row",
    OTHER_ROW + r"|first row",
    OWN,
    "mask",
    **mask_by(lambda mask, a: mask[:1].expand_as(mask)),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "mask tiled over batch and heads",
    OTHER_ROW,
    "ArrowLuo/CLIP4Clip#22",
    "mask",
    **mask_by(tiled),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "full mask of the last query",
    any_of(
        r"(last|one|same|single|first) (query|row)|(every|each|all) quer(y|ies)",
        r"queries share|query'?s? (row|mask)",
    ),
    OWN,
    "mask",
    declared={"mask_shape": "full"},
    **mask_by(lambda mask, a: mask[:, :, -1:]),
    false=any_of(FALSE_OF_MASK, "document", FLIPPED),
)
function(
    "mask after the softmax",
    AFTER,
    "huggingface/pytorch-image-models#2236",
    "mask",
    hide=lambda a, may: a,
    revive=lambda weights, may: weights * may,
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "scores times the mask",
    FINITE,
    OWN,
    "mask",
    hide=lambda a, may: a * may,
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "mask of 1 and 0 is added",
    FINITE,
    "timeseriesAI/tsai#171",
    "mask",
    hide=lambda a, may: a + may.to(a.dtype),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "masked by -1e-9",
    FINITE,
    "Shujun-He/RibonanzaNet#5",
    "mask",
    **fill(-1e-9),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "masked by +inf",
    NAN + r"|\+inf|sign",
    "lucidrains/memory-compressed-attention#2",
    "mask",
    **fill(torch.inf),
    false=FALSE_OF_MASK,
)
function(
    "mask does nothing",
    IGNORED,
    "jingyaogong/minimind-v#76",
    "mask",
    **mask_by(lambda mask, a: torch.ones_like(mask)),
    false=FALSE_OF_MASK,
)
function(
    "first key is never masked",
    r"first key|key 0|one key|(some|a) (hidden|masked) key|(hidden|masked) keys?",
    OWN,
    "mask",
    **mask_by(lambda mask, a: mask | (torch.arange(mask.shape[1]) == 0)),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "dead rows are NaN",
    NAN,
    "robertknight/rten#1321",
    "mask",
    **MASKED,
    revive=lambda weights, may: weights,
    false=FALSE_OF_MASK,
)
function(
    "dead rows are a mean",
    r"\bmean\b|uniform|equally|averag|all keys (alike|equal|the same)|finite",
    "lsdefine/attention-is-all-you-need-keras#16",
    "mask",
    **fill(-1e10),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "mask replaces causal",
    any_of(
        r"(replac|instead|in place|without|overrid|supersed)[^.]*causal",
        r"causal[^.]*(replac|lost|gone|dropped|no longer|ignored|not)|later|future",
    ),
    "FGA-DIKU/BONSAI#344",
    "mask",
    "causal",
    allowed=lambda a, mask, causal, window: allowed(a, mask, causal and mask is None, window),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "causal replaces the mask",
    IGNORED + r"|causal[^.]*(replac|instead|in place|overrid|alone|only)",
    "AI-Hypercomputer/maxtext#878",
    "mask",
    "causal",
    allowed=lambda a, mask, causal, window: allowed(a, None if causal else mask, causal, window),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
function(
    "causal only with a mask",
    NO_CAUSAL,
    "facebookresearch/xformers#103",
    "mask",
    "causal",
    allowed=lambda a, mask, causal, window: allowed(a, mask, causal and mask is not None, window),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
module(
    "module: mask reversed",
    REVERSED,
    "lucidrains/halonet-pytorch#4",
    "mask",
    causal=False,
    steps=mask_by(lambda mask, a: ~mask),
    false=FALSE_OF_MASK,
)
module(
    "module: mask on the queries",
    QUERY_AXIS + r"|not (the )?keys",
    "hyunwoongko/transformer#40",
    "mask",
    steps=mask_by(lambda mask, a: mask[:, None, :, None]),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
module(
    "module: mask on both axes, NaN for padding",
    NAN,
    "pytorch/pytorch#103749",
    "mask",
    causal=False,
    steps={
        **mask_by(lambda mask, a: mask[:, None, :, None] & mask[:, None, None, :]),
        **MASKED,
        "revive": lambda weights, may: weights,
    },
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
module(
    "module: mask tiled over batch and heads",
    OTHER_ROW,
    "line/lighthouse#77",
    "mask",
    causal=False,
    steps=mask_by(tiled),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
module(
    "module: keys and values zeroed, not masked",
    any_of(
        r"zero|\b0\b|weights?[^.]*(hidden|masked|padd)",
        r"(hidden|masked)[^.]*(weight|share|take part)|not removed|like removing",
    ),
    OWN,
    "mask",
    causal=False,
    core=lambda self, q, k, v, mask=None: attend(
        q, *((t if mask is None else t * mask[:, None, :, None]) for t in (k, v))
    ),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
module(
    "module: mask after the softmax",
    AFTER,
    "huggingface/pytorch-image-models#2236",
    "mask",
    causal=False,
    steps={"hide": lambda a, may: a, "revive": lambda weights, may: weights * may},
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
module(
    "module: mask of 1 and 0 is added",
    FINITE,
    "huggingface/transformers#41443",
    "mask",
    causal=False,
    steps={"hide": lambda a, may: a + may.to(a.dtype)},
    false=any_of(FALSE_OF_MASK, FLIPPED),
)
module(
    "module: causal replaces the mask",
    IGNORED + r"|causal[^.]*(replac|instead|in place|overrid|alone|only)",
    "AI-Hypercomputer/maxtext#878",
    "mask",
    core=lambda self, q, k, v, mask=None: attend(q, k, v, causal=True),
    false=any_of(FALSE_OF_MASK, FLIPPED),
)

# Windows and caps

WINDOW = r"window"


def windows(
    least: int = 0, more: int = 0, absolute: bool = False, local: bool = False
) -> dict[str, Any]:
    def other(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
        may = allowed(a, mask, causal, None)
        if window is None:
            return may
        d = distance(a) - (a.shape[-1] - a.shape[-2] if local else 0)
        return may & ((d.abs() if absolute else d) < window + more) & (absolute or d >= -999)

    return {"allowed": other}


def lost_in_decode(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
    decode = a.shape[-2] == 1 and a.shape[-1] > 1
    return allowed(a, mask, causal, None if decode else window)


function(
    "window of one key more",
    r"window[^.]*(wide|one more|too many|off[- ]by[- ]one|W \+ 1|\d)|one key (too many|more)",
    "ml-explore/mlx-lm#390",
    "causal",
    "window",
    **windows(more=1),
    false=FALSE_OF_WINDOW,
)
function(
    "window of one key less",
    any_of(
        r"window[^.]*(narrow|one less|fewer|too few|off[- ]by[- ]one|W - 1|\d)",
        r"one key (too few|less|fewer)",
    ),
    "lightseekorg/tokenspeed#578",
    "causal",
    "window",
    **windows(more=-1),
    false=FALSE_OF_WINDOW,
)
function(
    "window on both sides",
    r"both sides|two[- ]sided|symmetric|later|future|ahead",
    "huggingface/transformers#39408",
    "window",
    **windows(absolute=True),
    false=FALSE_OF_WINDOW,
)
function(
    "window lost in a step of one token",
    r"window",
    "ROCm/hip-ep#144",
    "causal",
    "window",
    "cache",
    allowed=lost_in_decode,
    false=any_of(FALSE_OF_WINDOW, "top left"),
)
function(
    "window counts from the chunk's first token",
    r"window|position|offset",
    "trymirai/lalamo#200",
    "causal",
    "window",
    "cache",
    **windows(local=True),
    false=FALSE_OF_WINDOW,
)
function(
    "window lost with a mask",
    r"window",
    OWN,
    "mask",
    "causal",
    "window",
    allowed=lambda a, mask, causal, window: allowed(
        a, mask, causal, window if mask is None else None
    ),
    false=any_of(FALSE_OF_WINDOW, FLIPPED),
)
function(
    "cap after the mask",
    r"after (the )?mask|before (the )?mask|cap[^.]*mask|mask[^.]*cap",
    "Dao-AILab/flash-attention#1025",
    "causal",
    "softcap",
    cap_last=True,
    false=any_of(FALSE_OF_MASK, NO_MASK),
)
function(
    "scores times tanh",
    r"\bcap|tanh",
    "unslothai/unsloth-zoo#593",
    "softcap",
    cap=lambda a, c, q: a * (a / c).tanh(),
    false=FALSE_OF_MASK,
)
function(
    "cap of unscaled scores",
    r"unscaled|before (the )?scal|not (yet )?scaled|raw|cap[^.]*scal|scal[^.]*cap",
    "huggingface/trl#5691",
    "softcap",
    cap=lambda a, c, q: c * (a * q.shape[-1] ** 0.5 / c).tanh() / q.shape[-1] ** 0.5,
    false=FALSE_OF_MASK,
)
function(
    "cap without its factor",
    r"\bcap|tanh",
    OWN,
    "softcap",
    cap=lambda a, c, q: (a / c).tanh(),
    false=FALSE_OF_MASK,
)

# Dropout


def kept(weights: Tensor, p: float, keep: Any = None) -> Tensor:
    """Which weights are kept, with fewer draws if `keep` is a shape."""
    return torch.rand(keep or weights.shape) >= p


def dropping(drop: Callable[[Tensor, float], Tensor]) -> dict[str, Any]:
    return {"drop": lambda weights, p: drop(weights, p) if p else weights}


IN_EVALUATION = r"evaluation|\beval\b|not repeatable|training mode|self\.training"
FALSE_OF_DROPOUT = any_of("causal", VIEW, SOFTMAX)
function(
    "dropout without rescaling",
    r"rescal|scaled|1 - p|1/\(1|divided|survivors",
    OWN,
    "dropout",
    **dropping(lambda w, p: w * kept(w, p)),
    false=FALSE_OF_DROPOUT,
)
function(
    "the rate is the share to keep",
    r"keep|kept|1 - p",
    "hunkim/DeepLearningZeroToAll#204",
    "dropout",
    **dropping(lambda w, p: dropped(w, 1 - p)),
    false=FALSE_OF_DROPOUT,
)
function(
    "one draw for all heads",
    r"(same|one|single|share)[^.]*head|heads?[^.]*(same|one|share|alike)",
    OWN,
    "dropout",
    **dropping(lambda w, p: w * kept(w, p, (w.shape[0], 1, *w.shape[2:])) / (1 - p)),
    false=FALSE_OF_DROPOUT,
)
function(
    "one draw for all queries",
    any_of(
        r"(same|one|single|share)[^.]*quer|quer(y|ies)[^.]*(same|one|share|alike)",
        r"whole (keys|columns)|all rows|rows",
    ),
    OWN,
    "dropout",
    **dropping(lambda w, p: w * kept(w, p, (*w.shape[:2], 1, w.shape[3])) / (1 - p)),
    false=FALSE_OF_DROPOUT,
)
function(
    "one draw for all batch rows",
    r"batch|rows",
    OWN,
    "dropout",
    **dropping(lambda w, p: w * kept(w, p, (1, *w.shape[1:])) / (1 - p)),
    false=FALSE_OF_DROPOUT,
)
SOMETIMES = {"dropout": 0.25}
module(
    "module: dropout before the softmax",
    r"before (the )?softmax|on (the )?scores|of (the )?scores",
    "PaddlePaddle/Parakeet#74",
    "dropout",
    options=SOMETIMES,
    core=lambda self, q, k, v, mask=None: (
        hide(dropped(scores(q, k), 0.25, self.training), distance(scores(q, k)) >= 0).softmax(-1)
        @ v
    ),
    false=any_of(NO_MASK, VIEW, SOFTMAX),
)
module(
    "module: dropout of scaled_dot_product_attention in evaluation",
    IN_EVALUATION,
    "suno-ai/bark#662",
    "dropout",
    core=lambda self, q, k, v, mask=None: scaled_dot_product_attention(
        q, k, v, dropout_p=0.2, is_causal=True
    ),
    false=FALSE_OF_DROPOUT,
)
module(
    "module: dropout in evaluation, not declared",
    IN_EVALUATION + r"|random|dropout",
    "meta-pytorch/torchtune#1791",
    causal=False,
    core=lambda self, q, k, v, mask=None: scaled_dot_product_attention(q, k, v, dropout_p=0.2),
    false=any_of(VIEW, SOFTMAX),
)
module(
    "module: the output is dropped in evaluation",
    IN_EVALUATION,
    OWN,
    "dropout",
    options=SOMETIMES,
    after=lambda self, x, out: dropped(self.o(out), 0.1),
    false=FALSE_OF_DROPOUT,
)
module(
    "module: rescaled in evaluation",
    r"evaluation|\beval\b|sums? to|rescal|1 - p|too large",
    OWN,
    "dropout",
    options=SOMETIMES,
    steps={
        "softmax": lambda a: a.softmax(-1) / 0.75,
        "drop": lambda w, p: w * kept(w, p) if p else w,
    },
    false=FALSE_OF_DROPOUT,
)
module(
    "module: dropout never applied",
    r"no dropout|does nothing|not applied|missing|never|share[^.]*\b0|(same|equal)[^.]*training",
    OWN,
    "dropout",
    options=SOMETIMES,
    steps={"drop": lambda weights, p: dropped(weights, p, False)},
    false=FALSE_OF_DROPOUT,
)

# The future comes in beside the mask

FALSE_OF_LEAK = any_of(NO_MASK, r"mask[^.]*(missing|after the softmax)", VIEW, "sum to 1", SOFTMAX)
module(
    "module: the mean of the text routes",
    OUTSIDE,
    "Shwai-He/MEO#2",
    before=lambda self, x: x * (1 + x.mean(1, keepdim=True)),
    false=FALSE_OF_LEAK,
)


def with_group_norm(self: Any) -> None:
    self.norm = nn.GroupNorm(4, 32)


module(
    "module: GroupNorm over time",
    OUTSIDE,
    "Wan-Video/Wan2.1#294",
    prepare=with_group_norm,
    before=lambda self, x: self.norm(x.mT).mT,
    false=FALSE_OF_LEAK,
)


def with_batch_norm(self: Any) -> None:
    self.norm = nn.BatchNorm1d(32, track_running_stats=False)


module(
    "module: BatchNorm over batch and time",
    OUTSIDE + "|batch",
    OWN,
    prepare=with_batch_norm,
    before=lambda self, x: self.norm(x.mT).mT,
    false=FALSE_OF_LEAK,
)


def with_convolution(self: Any) -> None:
    self.conv = nn.Conv1d(32, 32, 3, padding="same", groups=32)


module(
    "module: convolution of the values sees the next token",
    OUTSIDE + r"|values",
    "maxim5/time-series-machine-learning#12",
    prepare=with_convolution,
    project=lambda self, x: (self.q(x), self.k(x), self.conv(self.v(x).mT).mT),
    false=FALSE_OF_LEAK,
)
module(
    "module: convolution of the output sees the next token",
    OUTSIDE + r"|after (the )?attention|output",
    "maxim5/time-series-machine-learning#12",
    prepare=with_convolution,
    after=lambda self, x, out: self.o(self.conv(out.mT).mT),
    false=FALSE_OF_LEAK,
)


def keep_most_important(a: Tensor, may: Tensor) -> Tensor:
    """Half of the keys, chosen by their scores from all queries, later ones too."""
    n = a.shape[-1]
    least = a.mean(-2, keepdim=True).topk(max(1, n // 2), -1).values[..., -1:]
    chosen = a.mean(-2, keepdim=True) >= least
    return hide(a, may & (chosen | torch.eye(n, dtype=torch.bool)))


module(
    "module: the router chooses keys for the whole text",
    r"later|future|choice|chosen|select|top|rank",
    "piotrpiekos/MoSA#3",
    steps={"hide": keep_most_important},
    false=any_of(NO_MASK, r"mask[^.]*missing", VIEW, SOFTMAX),
)


def block_means(self: Any, x: Tensor) -> Tensor:
    n = x.shape[1]
    padded = nn.functional.pad(x, (0, 0, 0, -n % 4))
    return x + padded.unflatten(1, (-1, 4)).mean(2).repeat_interleave(4, 1)[:, :n]


module(
    "module: means of blocks",
    OUTSIDE + r"|block|chunk",
    "karpathy/nanochat#844",
    before=block_means,
    false=FALSE_OF_LEAK,
)
module(
    "module: keys are normalized over the text",
    OUTSIDE + r"|keys",
    OWN,
    project=lambda self, x: (self.q(x), nn.functional.normalize(self.k(x), dim=1), self.v(x)),
    false=FALSE_OF_LEAK,
)
module(
    "module: the residual is shifted",
    OUTSIDE + r"|residual|next",
    OWN,
    declared={"block": True},
    after=lambda self, x, out: x.roll(-1, 1) + self.o(out),
    false=FALSE_OF_LEAK,
)

# Other rows, overflow

function(
    "maximum over the queries",
    r"maxim|\bmax\b|other queries|queries[^.]*depend|column|over (the )?quer",
    OWN,
    softmax=lambda a: (a - a.amax(-2, keepdim=True)).softmax(-1),
    false=any_of(VIEW, r"softmax (runs )?over the heads"),
)
function(
    "one maximum for the whole batch",
    r"maxim|\bmax\b|underflow|other rows|\bnan|batch|low scores",
    OWN,
    softmax=lambda a: (
        (a - a.max().detach()).exp() / (a - a.max().detach()).exp().sum(-1, keepdim=True)
    ),
    false=any_of(VIEW, SOFTMAX),
)
function(
    "exp without a maximum",
    r"overflow|maxim|\bmax\b|\bnan|\binf|large scores",
    OWN,
    softmax=lambda a: a.exp() / a.exp().sum(-1, keepdim=True),
    false=any_of(VIEW, SOFTMAX, "sum to 1"),
)


class Library(nn.Module):
    """A wrapper of nn.MultiheadAttention."""

    def __init__(self, causal: bool = True, batch_first: bool = False, **_: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=batch_first)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1 if self.attention.batch_first else 0]
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1) if self.causal else None
        return self.attention(x, x, x, attn_mask=hidden, need_weights=False)[0]


module(
    "library: batch_first forgotten",
    r"batch",
    "om-ai-lab/OmDet#19",
    causal=False,
    base=Library,
    false=any_of(r"heads? (are )?split", "over the query axis"),
)
module(
    "library: batch_first forgotten, causal",
    r"batch",
    "kyegomez/movie-gen#8",
    base=Library,
    false=any_of(r"heads? (are )?split", "over the query axis", NO_MASK),
)
module(
    "module: batch and tokens exchanged by a view",
    r"batch|\bview\b|reshape|transpos",
    "rish-16/tokenlearner-pytorch#1",
    causal=False,
    before=lambda self, x: x.reshape(x.shape[1], x.shape[0], -1),
    after=lambda self, x, out: self.o(out.reshape(out.shape[1], out.shape[0], -1)),
    false="over the query axis",
)
function(
    "values of the next batch row",
    r"batch",
    OWN,
    prepare=lambda q, k, v: (q, k, v.roll(1, 0)),
    false=any_of(VIEW, SOFTMAX),
)

# Rotary positions

FALSE_OF_ROTARY = any_of(VIEW, SOFTMAX, "causal")


def by_angles(make: Callable[..., Tensor], how: Any = rotate) -> Any:
    return lambda q, k, v, p: (how(q, make(p, q)), how(k, make(p, k)), v)


def exponent(p: Tensor, x: Tensor) -> Tensor:
    return p[:, None] * 10000.0 ** (-torch.arange(x.shape[-1] // 2, dtype=x.dtype) / x.shape[-1])


def by_head(x: Tensor) -> Tensor:
    """Turned by the number of the head: the axes of heads and tokens are exchanged."""
    y = x.transpose(1, 2)
    return rotate(y, angles(torch.arange(y.shape[2]), y)).transpose(1, 2)


def other_family(p: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    full = angles(p, x)
    both = torch.cat([full, full], -1)
    return both.cos(), both.sin()


def neighbours_with_angles_of_halves(x: Tensor, p: Tensor) -> Tensor:
    cos, sin = other_family(p, x)
    other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cos + other * sin


function(
    "keys turned twice, queries never",
    any_of(
        r"quer(y|ies)[^.]*(not|un|never|only)|keys?[^.]*(twice|only)|only (the )?keys",
        r"differently|one of (them|the two)|not (both|the same)",
    ),
    "vllm-project/vllm-omni#3828",
    "positions",
    turn=lambda q, k, v, p: (q, rotate(rotate(k, angles(p, k)), angles(p, k)), v),
    false=any_of(FALSE_OF_ROTARY, "base", "values are turned"),
)
function(
    "only queries are turned",
    any_of(
        r"only (the )?quer|keys?[^.]*(not|un|never)|differently|one of (them|the two)",
        r"not (both|the same)",
    ),
    OWN,
    "positions",
    turn=lambda q, k, v, p: (rotate(q, angles(p, q)), k, v),
    false=any_of(FALSE_OF_ROTARY, "base", "values are turned"),
)
function(
    "values are turned, too",
    r"values?",
    OWN,
    "positions",
    turn=lambda q, k, v, p: tuple(rotate(t, angles(p, t)) for t in (q, k, v)),
    false=any_of(FALSE_OF_ROTARY, "base", r"keys? (is|are) not"),
)
function(
    "turned backwards",
    r"sign|backward|revers|opposite|direction|\bsin\b|sine|negative",
    "karpathy/nanochat#489",
    "positions",
    turn=by_angles(lambda p, x: -angles(p, x)),
    false=any_of(FALSE_OF_ROTARY, "base", "values are turned"),
)
function(
    "pairs of neighbours in place of halves",
    r"pairs?|interleav|halves|neighbou?r",
    "ohdearquant/lattice#392",
    "positions",
    declared={"rotary": "half"},
    turn=by_angles(angles, rotate_pairs),
    false=any_of(FALSE_OF_ROTARY, "values are turned"),
)
function(
    "halves in place of pairs of neighbours",
    r"pairs?|interleav|halves|neighbou?r",
    "vllm-project/vllm-ascend#12780",
    "positions",
    declared={"rotary": "interleaved"},
    false=any_of(FALSE_OF_ROTARY, "values are turned"),
)
function(
    "neighbours with the angles of halves",
    r"angles?|famil|repeat|frequenc|mixed",
    "facebookresearch/vjepa2#15",
    "positions",
    declared={"rotary": "interleaved"},
    turn=lambda q, k, v, p: (
        neighbours_with_angles_of_halves(q, p),
        neighbours_with_angles_of_halves(k, p),
        v,
    ),
    false=any_of(FALSE_OF_ROTARY, "values are turned", "base"),
)
function(
    "exponent i/d in place of 2i/d",
    r"exponent|i/d|angles?|frequenc|base|theta",
    "rasbt/LLMs-from-scratch#410",
    "positions",
    turn=by_angles(exponent),
    false=any_of(FALSE_OF_ROTARY, "values are turned", r"only (the )?quer"),
)
function(
    "turned by the head",
    r"head|positions?[^.]*(ignored|no (effect|influence)|not used|do not)",
    "facebookresearch/xformers#841",
    "positions",
    turn=lambda q, k, v, p: (by_head(q), by_head(k), v),
    false=any_of(FALSE_OF_ROTARY, "values are turned", "base"),
)
function(
    "first head is not turned",
    r"head",
    OWN,
    "positions",
    turn=lambda q, k, v, p: (
        *(torch.cat([t[:, :1], rotate(t[:, 1:], angles(p, t))], 1) for t in (q, k)),
        v,
    ),
    false=any_of(FALSE_OF_ROTARY, "values are turned", "base"),
)


def turned_from(self: Any, q: Tensor, k: Tensor, past: int) -> Any:
    p = torch.arange(past, past + q.shape[2])
    return rotate(q, angles(p, q)), rotate(k, angles(p, k))


def kept_by_length(self: Any, q: Tensor, k: Tensor, past: int) -> Any:
    """The table of a length is kept, whatever the offset."""
    self.tables = getattr(self, "tables", {})
    table = self.tables.setdefault(q.shape[2], torch.arange(past, past + q.shape[2]))
    return rotate(q, angles(table, q)), rotate(k, angles(table, k))


WHERE = r"positions?|offset|restart|start(s)? (again )?at 0"
module(
    "module: positions restart with a cache",
    WHERE,
    "pytorch/executorch#2010",
    "cache",
    declared={"positions": True},
    place=lambda self, q, k, past: turned_from(self, q, k, 0),
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)
module(
    "module: angles are kept by length",
    WHERE + r"|\bstate\b|earlier call|previous call|cache",
    "lucidrains/rotary-embedding-torch#11",
    "cache",
    declared={"positions": True},
    place=kept_by_length,
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)
module(
    "module: positions fall behind with a cache",
    WHERE + r"|behind",
    "rajveer43/VeloxQuant-MLX#389",
    "cache",
    declared={"positions": True},
    place=lambda self, q, k, past: turned_from(self, q, k, min(past, 2)),
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)

# Caches

FALSE_OF_CACHE = any_of(VIEW, SOFTMAX)
TOP_LEFT = r"top[- ]left|upper[- ]left|align|offset|first keys?|bottom"


def top_left(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
    n, m = a.shape[-2:]
    return (
        torch.ones_like(a, dtype=torch.bool) & (torch.arange(n)[:, None] >= torch.arange(m))
        if causal
        else allowed(a, mask, causal, window)
    )


def square_only(a: Tensor, mask: Any, causal: bool, window: Any) -> Tensor:
    return allowed(a, mask, causal and a.shape[-2] == a.shape[-1], window)


CHUNK = r"chunk|several (new )?(tokens|queries)|fewer queries|with a cache|prefill|new tokens"
function(
    "causal from the top left",
    TOP_LEFT,
    "google/flax#5591",
    "causal",
    "cache",
    allowed=top_left,
    false=FALSE_OF_CACHE,
)
function(
    "a chunk is not causal",
    CHUNK,
    "Mikyx-1/TinyLLM#18",
    "causal",
    "cache",
    allowed=square_only,
    false=any_of(FALSE_OF_CACHE, "top left"),
)
module(
    "module: causal from the top left",
    TOP_LEFT + "|cache",
    "time-series-foundation-models/lag-llama#81",
    "cache",
    steps={"allowed": top_left},
    false=any_of(FALSE_OF_CACHE, NO_MASK),
)
module(
    "module: a chunk is not causal",
    CHUNK,
    "Mikyx-1/TinyLLM#18",
    "cache",
    steps={"allowed": square_only},
    false=any_of(FALSE_OF_CACHE, NO_MASK, "top left"),
)
module(
    "module: the cache is replaced",
    r"cache|earlier|forgotten|lost|past",
    "alex-hh/profam#168",
    "cache",
    remember=lambda self, k, v, cache: (k, v),
    false=any_of(FALSE_OF_CACHE, NO_MASK),
)
module(
    "module: only keys are cached",
    r"values?|cache",
    OWN,
    "cache",
    remember=lambda self, k, v, cache: (
        torch.cat([cache[0], k], 2),
        torch.cat([torch.zeros_like(cache[1]), v], 2),
    ),
    false=any_of(FALSE_OF_CACHE, NO_MASK),
)
module(
    "module: rows of the cache in another order",
    r"batch|rows?\b",
    "huggingface/transformers#46612",
    "cache",
    remember=lambda self, k, v, cache: (
        torch.cat([cache[0].flip(0), k], 2),
        torch.cat([cache[1].flip(0), v], 2),
    ),
    false=any_of(FALSE_OF_CACHE, NO_MASK),
)
module(
    "module: new keys come first",
    r"cache|order|front|before|position|align",
    OWN,
    "cache",
    remember=lambda self, k, v, cache: (torch.cat([k, cache[0]], 2), torch.cat([v, cache[1]], 2)),
    false=any_of(FALSE_OF_CACHE, NO_MASK),
)


def stale(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Keys of the last call stay, if the shapes agree."""
    old = getattr(self, "old", None)
    self.old = (k.detach(), v.detach())
    if old is not None and old[0].shape == k.shape and old[0].dtype == k.dtype:
        k, v = torch.cat([old[0], k], 2), torch.cat([old[1], v], 2)
    return attend(q, k, v, causal=True)


module(
    "module: keys of the last call stay",
    any_of(
        r"\bstate\b|(last|earlier|previous) call|between calls|not repeatable|second call",
        r"depends on (the )?(calls|history)|reset",
    ),
    "time-series-foundation-models/lag-llama#81",
    core=stale,
    false=any_of(FALSE_OF_CACHE, "dropout"),
)

# State, writes, precision, gradients


def running_mean(self: Any, x: Tensor) -> Tensor:
    self.seen = 0.9 * getattr(self, "seen", 0.0) + 0.1 * x.detach().mean()
    return x - self.seen


def half(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda a: a.to(dtype).softmax(-1).to(a.dtype)


STATE = r"\bstate\b|(last|earlier|previous) call|between calls|not repeatable|second call|history"
WRITES = r"in[- ]place|overwrit|(input|mask|queries|keys|x)[^.]*(changed|modified|written)|writes"
PRECISION = r"precision|float16|bfloat16|\bhalf\b|round"
GRADIENT = r"detach|gradient|no_grad|\.data\b|backward"
module(
    "module: a running mean survives the call",
    STATE,
    OWN,
    before=running_mean,
    false=any_of(VIEW, SOFTMAX),
)
function(
    "queries are scaled in place",
    WRITES,
    OWN,
    call=lambda q, k, v: (q.mul_(q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v,
    false=any_of(VIEW, SOFTMAX, "twice"),
)
function(
    "the mask is inverted in place",
    WRITES,
    OWN,
    "mask",
    call=lambda q, k, v, mask=None: (
        attend(q, k, v) if mask is None else attend(q, k, v, mask=~mask.logical_not_())
    ),
    false=any_of(VIEW, SOFTMAX),
)
module(
    "module: x is normalized in place",
    WRITES,
    OWN,
    before=lambda self, x: x.sub_(x.mean(-1, keepdim=True)),
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)
function(
    "softmax in float16",
    PRECISION,
    "huggingface/transformers#17437",
    softmax=half(torch.float16),
    false=any_of(VIEW, SOFTMAX),
)
module(
    "module: weights in bfloat16",
    PRECISION,
    OWN,
    causal=False,
    steps={"softmax": half(torch.bfloat16)},
    false=any_of(VIEW, SOFTMAX),
)
function(
    "keys are detached",
    GRADIENT,
    OWN,
    prepare=lambda q, k, v: (q, k.detach(), v),
    false=any_of(VIEW, SOFTMAX),
)
function(
    "weights without gradients",
    GRADIENT,
    OWN,
    "causal",
    softmax=lambda a: a.softmax(-1).detach(),
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)
module(
    "module: values are detached",
    GRADIENT,
    OWN,
    causal=False,
    project=lambda self, x: (self.q(x), self.k(x), self.v(x).detach()),
    false=any_of(VIEW, SOFTMAX),
)
module(
    "module: x.data",
    GRADIENT,
    OWN,
    before=lambda self, x: x.data,
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)
NOT_USED = (
    r"(not|never|un)[ -]?(used|called|applied)|no gradient|thrown|discard|result[^.]*lost|lost"
)
module(
    "module: no output projection, though it is there",
    NOT_USED,
    "sooftware/attentions#1",
    after=lambda self, x, out: out,
    false=any_of(VIEW, SOFTMAX, NO_MASK, "detach"),
)


def lost_result(self: Any, x: Tensor, out: Tensor) -> Tensor:
    self.o(out)
    return out


module(
    "module: the projection's result is thrown away",
    NOT_USED,
    "facebookresearch/jepa#94",
    causal=False,
    after=lost_result,
    false=any_of(VIEW, SOFTMAX, "detach"),
)

# Linear biases (ALiBi)


def with_bias(sign: float) -> Callable[..., Tensor]:
    def biased(q: Tensor, k: Tensor) -> Tensor:
        slopes = 2.0 ** -torch.arange(1, q.shape[1] + 1, dtype=q.dtype)[:, None, None]
        return scores(q, k) + sign * slopes * distance(scores(q, k))

    return biased


ALIBI = r"bias|far|distan|sign|alibi|position"
module(
    "module: ALiBi favours far tokens",
    ALIBI,
    OWN,
    declared={"positions": True},
    steps={"scores": with_bias(1.0)},
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)
module(
    "encoder: ALiBi without an absolute value",
    ALIBI + "|later|future|one side",
    "ofirpress/attention_with_linear_biases#5",
    causal=False,
    declared={"positions": True},
    steps={"scores": with_bias(-1.0)},
    false=any_of(VIEW, SOFTMAX),
)

# Models

model(
    "model: no causal mask",
    NO_CAUSAL,
    "huggingface/transformers#48745",
    layer={"core": lambda self, q, k, v, mask=None: attend(q, k, v, mask=mask)},
    false=any_of(VIEW, SOFTMAX),
)
model(
    "model: labels shifted twice",
    r"twice|t ?\+ ?2|two (tokens|positions|ahead)|second|next but one",
    "huggingface/transformers#47394",
    "labels",
    loss=lambda self, logits, labels: cross_entropy(
        logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten()
    ),
)
model(
    "model: labels not shifted",
    r"not shifted|(same|own|its own|current) (token|position)|unshifted|token t\b",
    "huggingface/transformers#27517",
    "labels",
    loss=lambda self, logits, labels: cross_entropy(logits.flatten(0, 1), labels.flatten()),
    false="twice",
)
model(
    "model: padding has positions",
    r"position",
    "unslothai/unsloth#3699",
    "mask",
    positions=lambda self, tokens, mask, past: torch.arange(past, past + tokens.shape[1]),
    false=any_of(VIEW, SOFTMAX, FLIPPED),
)
model(
    "model: padding is seen",
    any_of(
        r"(mask|padding)[^.]*(ignored|not (applied|used)|seen|take part|influence)",
        r"(mask|padding)[^.]*(no effect|does nothing)",
        r"sees? (the )?padding",
    ),
    "jingyaogong/minimind-v#76",
    "mask",
    visible=lambda self, mask, documents: None,
    false=any_of(VIEW, SOFTMAX, FLIPPED),
)
model(
    "model: documents see each other",
    r"document",
    "alex-hh/profam#495",
    "documents",
    visible=lambda self, mask, documents: mask,
    false=any_of(VIEW, SOFTMAX),
)
model(
    "model: tied by a copy",
    r"\b(un)?tied|\btie\b|same weight|one weight|share",
    "huggingface/accelerate#1204",
    "tied",
    tie=lambda self: self.head.weight.data.copy_(self.embedding.weight.data),
)
model(
    "model: positions by the batch",
    r"batch|positions?",
    "cmu-l3/anlp-fall2025-code#1",
    positions=lambda self, tokens, mask, past: torch.arange(tokens.shape[0])[:, None],
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)
model(
    "model: one position for all tokens",
    r"length|positions?",
    "DiffPoseTalk/DiffPoseTalk#20",
    positions=lambda self, tokens, mask, past: torch.full((tokens.shape[1],), tokens.shape[1]),
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)
model(
    "model: positions restart with a cache",
    WHERE,
    "pytorch/executorch#2010",
    "cache",
    positions=lambda self, tokens, mask, past: torch.arange(tokens.shape[1]),
    false=any_of(VIEW, SOFTMAX, NO_MASK),
)
model(
    "model: a chunk is not causal",
    CHUNK,
    "Mikyx-1/TinyLLM#18",
    "cache",
    layer={
        "core": lambda self, q, k, v, mask=None: attend(
            q, k, v, mask=mask, causal=q.shape[2] == k.shape[2]
        )
    },
    false=any_of(VIEW, SOFTMAX, "top left"),
)
model(
    "model: the mean of the text is added",
    OUTSIDE,
    "Shwai-He/MEO#2",
    layer={"before": lambda self, x: x + x.mean(1, keepdim=True)},
    false=FALSE_OF_LEAK,
)
