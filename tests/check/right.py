"""Correct attentions, in which the checks must find no fault; a mutant replaces one step of them.

A function of queries, keys and values, a module of one sequence, and a model of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

# The formula, in steps


def split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def turn(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    half = x.shape[-1] // 2
    angles = positions[:, None] * theta ** (-torch.arange(half, dtype=x.dtype) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def allowed(
    queries: int, keys: int, mask: Tensor | None, causal: bool, window: int | None
) -> Tensor:
    distance = torch.arange(queries)[:, None] + (keys - queries) - torch.arange(keys)
    may = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        may = may & (distance >= 0)
    if window is not None:
        may = may & (distance >= 0) & (distance < window)
    return may if mask is None else may & (mask[:, None, None, :] if mask.ndim == 2 else mask)


def softmax(scores: Tensor) -> Tensor:
    """NaN for rows of -inf, like PyTorch's softmax."""
    return scores.softmax(-1)


def revive(weights: Tensor, may: Tensor) -> Tensor:
    return torch.where(may.any(-1, keepdim=True), weights, 0.0)


def hide(scores: Tensor, may: Tensor) -> Tensor:
    """Set masked scores to -inf; leave rows with all keys masked unchanged, which avoids NaN."""
    return scores.masked_fill(~may & may.any(-1, keepdim=True), -torch.inf)


def drop(weights: Tensor, rate: float) -> Tensor:
    return nn.functional.dropout(weights, rate, training=True) if rate else weights


@dataclass(frozen=True)
class Steps:
    prepare: Callable[..., tuple[Tensor, Tensor, Tensor]] = lambda q, k, v, mask: (q, k, v)
    turn: Callable[..., Tensor] = turn
    repeat: Callable[..., Tensor] = lambda x, times: x.repeat_interleave(times, 1)
    repeat_values: Callable[..., Tensor] = lambda x, times: x.repeat_interleave(times, 1)
    scores: Callable[..., Tensor] = lambda q, k: q @ k.mT
    scale: Callable[..., Tensor] = lambda scores, q, k: scores / q.shape[-1] ** 0.5
    cap: Callable[..., Tensor] = lambda scores, cap: cap * (scores / cap).tanh()
    allowed: Callable[..., Tensor] = allowed
    hide: Callable[..., Tensor] = hide
    cap_last: bool = False
    softmax: Callable[..., Tensor] = softmax
    revive: Callable[..., Tensor] = revive
    drop: Callable[..., Tensor] = drop
    mix: Callable[..., Tensor] = lambda weights, values: weights @ values


RIGHT = Steps()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    positions: Tensor | None = None,
    steps: Steps = RIGHT,
) -> Tensor:
    q, k, v = steps.prepare(q, k, v, mask)
    if positions is not None:
        q, k = steps.turn(q, positions), steps.turn(k, positions)
    times = q.shape[1] // k.shape[1]
    k, v = steps.repeat(k, times), steps.repeat_values(v, times)
    scores = steps.scale(steps.scores(q, k), q, k)
    may = steps.allowed(q.shape[2], k.shape[2], mask, causal, window)
    if softcap is not None and not steps.cap_last:
        scores = steps.cap(scores, softcap)
    scores = steps.hide(scores, may)
    if softcap is not None and steps.cap_last:
        scores = steps.cap(scores, softcap)
    weights = steps.revive(steps.softmax(scores), may)
    return steps.mix(steps.drop(weights, dropout), v)


class SelfAttention(nn.Module):
    """x (batch, tokens, width), with heads; causal or not; padding as a mask of the keys."""

    def __init__(
        self,
        width: int = 16,
        heads: int = 4,
        *,
        causal: bool = True,
        dropout: float = 0.0,
        split: Callable[..., Tensor] = split,
        merge: Callable[..., Tensor] = merge,
        steps: Steps = RIGHT,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.split, self.merge, self.steps = split, merge, steps
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.qkv = nn.Linear(width, 3 * width)
            self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: Any = False
    ) -> Tensor | tuple[Tensor, Any]:
        q, k, v = (self.split(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        if cache is not False and cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        rate = self.dropout if self.training else 0.0
        options = {"mask": mask, "causal": self.causal, "dropout": rate, "steps": self.steps}
        out = self.out(self.merge(attend(q, k, v, **options)))
        return out if cache is False else (out, (k, v))


class Model(nn.Module):
    """A small GPT: learned positions, one block, tied output; padding, documents, cache, labels."""

    vocabulary, width = 40, 16

    def __init__(self, *, tie: bool = True, dropout: float = 0.0, **attention: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.embedding = nn.Embedding(self.vocabulary, self.width)
            self.position_embedding = nn.Embedding(33, self.width)
            self.attention = SelfAttention(self.width, **attention)
            self.mlp = nn.Sequential(nn.Linear(self.width, 32), nn.GELU(), nn.Linear(32, 16))
            self.head = nn.Linear(self.width, self.vocabulary, bias=False)
        self.dropout = nn.Dropout(dropout)
        if tie:
            self.head.weight = self.embedding.weight

    def positions(self, tokens: Tensor, mask: Tensor | None, before: int) -> Tensor:
        if mask is None:
            return torch.arange(before, before + tokens.shape[1])
        return (mask.long().cumsum(-1) - 1).clamp(min=0)

    def same_document(self, documents: Tensor) -> Tensor:
        return (documents[:, :, None] == documents[:, None])[:, None]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        documents: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Any = False,
    ) -> Any:
        before = cache[0].shape[2] if cache is not False and cache is not None else 0
        x = self.embed(tokens) + self.position_embedding(self.positions(tokens, mask, before))
        visible = mask if documents is None else self.same_document(documents)
        output = self.attention(x, visible, cache)
        output, cache = output if cache is not False else (output, cache)
        x = self.dropout(x + output)
        logits = self.head(x + self.mlp(x))
        if labels is not None:
            return self.loss(logits, labels)
        return logits if cache is False else (logits, cache)


# The correct attentions, with all kinds of declarations


@dataclass(frozen=True)
class Checked:
    """The arguments of `diagnose`; for a mutant also its bug and a check that finds it."""

    attention: Any
    declared: dict[str, Any]
    caught_by: str = ""
    why: str = ""


QKV = {"kind": "qkv", "engine": "torch"}
FULL = ("mask", "causal", "window", "softcap", "dropout", "positions", "cache")
SELF = {"kind": "self", "width": 16}
MODEL = {"kind": "model", "vocabulary": 40}
MODEL_FEATURES = ("mask", "documents", "labels", "cache", "tied")


def in_layout(
    layout: str, q: Any, k: Any, v: Any, heads: int = 4, kv_heads: int = 2, **o: Any
) -> Any:
    if layout == "bthd":
        return attend(*(x.transpose(1, 2) for x in (q, k, v)), **o).transpose(1, 2)
    return merge(attend(split(q, heads), split(k, kv_heads), split(v, kv_heads), **o))


def true_means_masked(q: Any, k: Any, v: Any, mask: Any = None, **options: Any) -> Any:
    return attend(q, k, v, mask=None if mask is None else ~mask, **options)


def numpy_attend(q: Any, k: Any, v: Any, *, causal: bool = False, may: Any = None) -> Any:
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    later = (
        np.triu(np.ones(scores.shape[-2:], bool), 1) if may is None else ~may(*scores.shape[-2:])
    )
    if causal:
        scores = np.where(later, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def jax_attend(
    q: Any, k: Any, v: Any, *, causal: bool = False, axis: int = -1, cut: Any = None
) -> Any:
    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    return jax.nn.softmax(scores, axis) @ (v if cut is None else cut(v))


class NormalizesAgain(SelfAttention):
    """Masks after the softmax and normalizes again, which is correct, too (Raschka, 3.5.1)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).tril()
        return self.out(merge(weights / weights.sum(-1, keepdim=True) @ v))


def float32_softmax(scores: Tensor) -> Tensor:
    """The softmax in float32 for inputs of every precision, as in Hugging Face's models."""
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


def large(module: nn.Module) -> nn.Module:
    """Multiply the weights by 4, which gives large scores."""
    for parameter in module.parameters():
        parameter.data = parameter.data * 4
    return module


class ThreeTokens(Model):
    vocabulary = 3


RIGHT_ONES = {
    "everything": Checked(attend, {**QKV, "kv_heads": 2, "features": FULL}),
    "full masks": Checked(attend, {**QKV, "mask_shape": "full", "features": ("mask", "causal")}),
    "True means masked": Checked(
        true_means_masked, {**QKV, "mask_true": "masked", "features": ("mask",)}
    ),
    "bthd": Checked(partial(in_layout, "bthd"), {**QKV, "layout": "bthd", "kv_heads": 2}),
    "packed": Checked(
        partial(in_layout, "packed"),
        {**QKV, "layout": "packed", "kv_heads": 2, "features": ("mask", "causal")},
    ),
    "always causal": Checked(
        partial(attend, causal=True),
        {**QKV, "causal": True, "features": ("mask", "window", "softcap", "dropout")},
    ),
    "float32 inside": Checked(
        partial(attend, steps=replace(RIGHT, softmax=float32_softmax)),
        {**QKV, "kv_heads": 2, "features": FULL},
    ),
    "wide and large": Checked(large(SelfAttention(64, causal=False)), {**SELF, "width": 64}),
    "rare dropout": Checked(
        SelfAttention(dropout=0.01), {**SELF, "causal": True, "features": ("dropout",)}
    ),
    "float32 inside a module": Checked(
        SelfAttention(steps=replace(RIGHT, softmax=float32_softmax)),
        {**SELF, "causal": True, "features": ("mask", "cache")},
    ),
    "three tokens": Checked(ThreeTokens(), {**MODEL, "vocabulary": 3}),
    "one head": Checked(attend, {**QKV, "heads": 1}),
    "NumPy": Checked(numpy_attend, {"kind": "qkv", "features": ("causal",)}),
    "JAX": Checked(jax_attend, {"kind": "qkv", "features": ("causal",), "engine": "jax"}),
    "causal": Checked(
        SelfAttention(dropout=0.2),
        {**SELF, "causal": True, "features": ("mask", "dropout", "cache")},
    ),
    "bidirectional": Checked(SelfAttention(causal=False), {**SELF, "features": ("mask",)}),
    "normalized again": Checked(NormalizesAgain(), {**SELF, "causal": True}),
    "model": Checked(Model(dropout=0.1), {**MODEL, "features": (*MODEL_FEATURES, "dropout")}),
}
