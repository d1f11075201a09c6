"""Mutants: attentions with one planted bug each, which the checks must find.

A mutant is the correct formula with one step replaced, or a correct module with one method
replaced. `caught_by` is a check that must fail for it; docs/check.md lists all checks that fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from right import (
    MODEL,
    QKV,
    RIGHT,
    SELF,
    Checked,
    Model,
    NormalizesAgain,
    SelfAttention,
    Steps,
    allowed,
    attend,
    drop,
    jax_attend,
    merge,
    numpy_attend,
    split,
    true_means_masked,
    turn,
)

# Some bugs are small on purpose, so that only one check finds them.

MUTANTS: dict[str, Checked] = {}
CALLS = count()


def mutant(
    name: str, why: str, caught_by: str, attention: Any, declared: dict[str, Any], *features: str
) -> None:
    assert name not in MUTANTS, name
    MUTANTS[name] = Checked(attention, {**declared, "features": features}, caught_by, why)


def qkv(
    name: str,
    why: str,
    caught_by: str,
    *features: str,
    declared: dict[str, Any] = QKV,
    **wrong: Any,
) -> None:
    mutant(
        name, why, caught_by, partial(attend, steps=replace(RIGHT, **wrong)), declared, *features
    )


def softmax_over(axis: int) -> Callable[[Tensor], Tensor]:
    return lambda scores: scores.softmax(axis)


qkv(
    "softmax over queries",
    "softmax(dim=-2): columns sum to 1",
    "constant",
    softmax=softmax_over(-2),
)
qkv("softmax over heads", "softmax(dim=1)", "constant", softmax=softmax_over(1))
qkv("softmax over the batch", "softmax(dim=0)", "constant", softmax=softmax_over(0))
qkv("not scaled", "no 1/sqrt(d_k)", "scale", scale=lambda s, q, k: s)
qkv("scaled twice", "1/d_k", "scale", scale=lambda s, q, k: s / q.shape[-1])
qkv(
    "scaled by all heads",
    "1/sqrt(width)",
    "scale",
    scale=lambda s, q, k: s / (q.shape[1] * q.shape[-1]) ** 0.5,
)
qkv(
    "scaled by the keys",
    "1/sqrt(tokens)",
    "duplicated",
    scale=lambda s, q, k: s / k.shape[-2] ** 0.5,
)
qkv(
    "log-length scale",
    "scores grow with log(tokens) beyond 16 keys",
    "duplicated",
    scale=lambda s, q, k: s / q.shape[-1] ** 0.5 * max(1.0, np.log(k.shape[-2]) / np.log(16)),
)
qkv("wrong sign", "-q.k", "scale", scores=lambda q, k: -q @ k.mT)


def unshifted(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def shifted_by(*axes: int) -> Callable[[Tensor], Tensor]:
    def normalized(scores: Tensor) -> Tensor:
        weights = (scores - scores.amax(axes, keepdim=True)).exp()
        return weights / weights.sum(-1, keepdim=True)

    return normalized


def floored(scores: Tensor) -> Tensor:
    weights = (scores - scores.amax(-1, keepdim=True)).clamp(min=-25).exp()
    return weights / weights.sum(-1, keepdim=True)


def off_by_one(scores: Tensor) -> Tensor:
    return scores.exp() / (1 + scores.exp().sum(-1, keepdim=True))


def in_tiles(scores: Tensor) -> Tensor:
    """The online softmax over tiles of 16 keys, without rescaling them to one maximum."""
    tiles = scores.split(16, -1)
    weights = torch.cat([(tile - tile.amax(-1, keepdim=True)).exp() for tile in tiles], -1)
    return weights / weights.sum(-1, keepdim=True)


qkv("exp overflows", "the row's maximum is not subtracted", "shifted", softmax=unshifted)
qkv("softmax off by one", "1 + sum of exp", "constant", softmax=off_by_one)
qkv(
    "one maximum for all queries",
    "rows of low scores underflow",
    "rows",
    softmax=shifted_by(-1, -2),
)
qkv("one maximum for the batch", "rows of low scores underflow", "batch", softmax=shifted_by(-1, 0))
qkv("floor below the scores", "score - max clamped at -25", "sharp", softmax=floored)
qkv(
    "scores clamped",
    "clamped to -20 ... 20",
    "sharp",
    softmax=lambda s: s.clamp(-20, 20).softmax(-1),
)
qkv("tiles not rescaled", "each tile keeps its own maximum", "order", softmax=in_tiles)
qkv(
    "rescaled at evaluation",
    "weights / (1 - p) without dropout",
    "constant",
    drop=lambda w, rate: w / 0.9,
)
qkv(
    "dropout in evaluation",
    "p = 0.1 in evaluation mode",
    "repeatable",
    drop=lambda w, rate: drop(w, 0.1),
)
qkv(
    "noise",
    "1e-15 is added in every second call",
    "repeatable",
    mix=lambda w, v: w @ v + 1e-15 * (next(CALLS) % 2),
)


def unmasked_tile(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
    """Tiles of two rows and columns; those on the diagonal after the first four are not masked."""
    may = allowed(queries, keys, mask, causal, window)
    if causal:
        row, column = torch.arange(queries)[:, None], torch.arange(keys)
        may = may | (row // 2 == column // 2) & (row >= 8)
    return may


def mixes_future(w: Tensor, v: Tensor, weight: float) -> Tensor:
    """Add 0 that has a gradient, like a straight-through estimator."""
    total = weight * v.sum(-2, keepdim=True)
    return w @ v + total - total.detach()


def shift_mask(by: int) -> Callable[..., Tensor]:
    def shifted(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
        may = allowed(queries, keys, mask, False, window)
        return may & torch.ones(queries, keys, dtype=torch.bool).tril(by) if causal else may

    return shifted


def numpy_mutant(
    name: str, why: str, caught_by: str, may: Callable[[int, int], Any], **declared: Any
) -> None:
    attention = partial(numpy_attend, may=may)
    mutant(name, why, caught_by, attention, {"kind": "qkv", **declared}, "causal")


qkv("causal shifted by one", "tril(diagonal=1)", "future", "causal", allowed=shift_mask(1))
mutant(
    "keys detached",
    "keys get no gradient",
    "gradient",
    partial(attend, steps=replace(RIGHT, scores=lambda q, k: q @ k.detach().mT)),
    QKV,
)
mutant(
    "JAX stops the gradient",
    "values get no gradient",
    "gradient",
    partial(jax_attend, cut=jax.lax.stop_gradient),
    {"kind": "qkv", "engine": "jax"},
)
mutant(
    "NumPy over queries",
    "softmax over the query axis",
    "constant",
    lambda q, k, v: numpy_attend(k, q, np.eye(q.shape[2])).swapaxes(-1, -2) @ v,
    {"kind": "qkv"},
)
qkv(
    "tile not masked", "on the diagonal, beyond 8 tokens", "future", "causal", allowed=unmasked_tile
)
qkv(
    "causal ignored",
    "the option does nothing",
    "future",
    "causal",
    allowed=lambda q, k, m, c, w: allowed(q, k, m, False, w),
)
qkv("finite mask", "-8 instead of -inf", "future", "causal", hide=lambda s, may: s - 8.0 * ~may)
numpy_mutant(
    "token masks itself",
    "strictly causal except for the first token",
    "present",
    lambda q, k: np.tri(q, k, -1, dtype=bool) | (np.arange(q)[:, None] + np.arange(k) == 0),
)
numpy_mutant(
    "first key forgotten",
    "the first key is lost after four tokens",
    "past",
    lambda q, k: np.tri(q, k, dtype=bool) & ~((np.arange(k) == 0) & (np.arange(q)[:, None] > 4)),
    positions=True,  # so that the order of tokens may matter
)
qkv(
    "a gradient from the future",
    "1e-7, by a straight-through term",
    "gradient",
    "causal",
    mix=partial(mixes_future, weight=1e-7),
)

qkv(
    "scaled by the length",
    "1/sqrt(tokens)",
    "prefix",
    "causal",
    scale=lambda s, q, k: s / k.shape[-2] ** 0.5,
)

# Layout, heads, batch


def packed(name: str, why: str, caught_by: str, split: Any, merge: Any) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return merge(attend(split(q, 4), split(k, 4), split(v, 4)))

    mutant(name, why, caught_by, attention, {**QKV, "layout": "packed"})


def view_split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], heads, x.shape[1], -1)


def view_merge(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[2], -1)


packed("split by a view", "no transpose: tokens and features are mixed", "order", view_split, merge)
packed("merged by a view", "no transpose back", "groups", split, view_merge)
qkv("output heads reversed", "out[h] is head H - 1 - h", "groups", mix=lambda w, v: (w @ v).flip(1))
qkv(
    "kv heads tiled",
    "repeat instead of repeat_interleave",
    "groups",
    declared={**QKV, "kv_heads": 2},
    repeat=lambda x, times: x.repeat(1, times, 1, 1),
)
qkv("batch rows rolled", "values of the next batch row", "batch", mix=lambda w, v: w @ v.roll(1, 0))

# Masks


def zeroed(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
    if mask is None:
        return q, k, v
    keep = mask[:, None, :, None]
    return q, k * keep, v * keep


def without(name: str) -> Callable[..., Tensor]:
    def partly(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
        if mask is not None and name == "causal":
            return allowed(queries, keys, mask, False, window)
        return allowed(queries, keys, None if causal and name == "mask" else mask, causal, window)

    return partly


def first_row(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
    return allowed(queries, keys, None if mask is None else mask[:, :, :1], causal, window)


def first_batch(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
    return allowed(queries, keys, None if mask is None else mask[:1], causal, window)


def mask_weights(weights: Tensor, may: Tensor) -> Tensor:
    return weights * may


def nan_replaced(weights: Tensor, may: Tensor) -> Tensor:
    return weights.nan_to_num()


def raw_hide(scores: Tensor, may: Tensor) -> Tensor:
    return scores.masked_fill(~may, -torch.inf)


def windowed(extra: int, ahead: bool = False) -> Callable[..., Tensor]:
    def may(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
        if window is None:
            return allowed(queries, keys, mask, causal, None)
        distance = torch.arange(queries)[:, None] - torch.arange(keys)
        return (distance < window + extra) & (distance > -window if ahead else distance >= 0)

    return may


FULL_MASK = {**QKV, "mask_shape": "full"}

mutant("mask reversed", "True means masked", "masked", true_means_masked, QKV, "mask")
qkv(
    "mask of another row",
    "the first batch row's mask for all rows",
    "masked",
    "mask",
    allowed=first_batch,
)
qkv(
    "-30 for -inf",
    "masked keys with large contents have an influence",
    "masked",
    "mask",
    hide=lambda s, may: s - 30.0 * ~may,
)
qkv(
    "masked after the softmax",
    "the weights are not normalized again",
    "deleted",
    "mask",
    hide=lambda s, may: s,
    revive=mask_weights,
)
qkv(
    "zeroed, not masked",
    "masked keys and values are 0, but their weights are not",
    "deleted",
    "mask",
    prepare=zeroed,
    allowed=lambda q, k, m, c, w: allowed(q, k, None, c, w),
)
qkv(
    "mask without causal",
    "a mask replaces the causal one",
    "mask-and-causal",
    "mask",
    "causal",
    allowed=without("causal"),
)
qkv(
    "causal without mask",
    "causal replaces the mask",
    "mask-and-causal",
    "mask",
    "causal",
    allowed=without("mask"),
)
qkv(
    "-1e9 for -inf",
    "a query with all keys masked attends to all keys equally",
    "dead-rows",
    "mask",
    hide=lambda s, may: s.masked_fill(~may, -1e9),
    revive=lambda w, may: w,
)
qkv(
    "dead rows NaN",
    "the softmax of a row of -inf",
    "dead-rows",
    "mask",
    hide=raw_hide,
    revive=lambda w, may: w,
)
qkv(
    "NaN replaced",
    "only in the output: the gradient is NaN",
    "dead-rows",
    "mask",
    hide=lambda s, may: s + torch.where(may, 0.0, -torch.inf),
    revive=nan_replaced,
)
qkv(
    "first row's mask",
    "the first query's mask for all queries",
    "documents",
    "mask",
    declared=FULL_MASK,
    allowed=first_row,
)
qkv("window too wide", "q - k <= W", "window", "causal", "window", allowed=windowed(1))
qkv("window too narrow", "q - k < W - 1", "window", "causal", "window", allowed=windowed(-1))
qkv("window on both sides", "abs(q - k) < W", "window", "window", allowed=windowed(0, ahead=True))
qkv("cap after the mask", "tanh(-inf) is -1", "softcap", "mask", "softcap", cap_last=True)
qkv(
    "cap without its factor",
    "tanh(s / c)",
    "softcap",
    "softcap",
    cap=lambda s, cap: (s / cap).tanh(),
)
qkv(
    "causal from the top left",
    "with a cache the last query sees one key",
    "cache",
    "causal",
    "cache",
    allowed=lambda q, k, m, c, w: (
        allowed(q, k, m, False, w) & (torch.ones(q, k, dtype=torch.bool).tril() if c else True)
    ),
)


# Positions, dropout, numbers


def interleaved(x: Tensor, positions: Tensor) -> Tensor:
    order = torch.arange(x.shape[-1]).reshape(-1, 2).mT.flatten()
    return turn(x[..., order], positions)[..., order.argsort()]


qkv("other pairs", "interleaved, but half is declared", "rotary", "positions", turn=interleaved)
qkv(
    "sine reversed",
    "rotated backwards",
    "rotary",
    "positions",
    turn=lambda x, positions: turn(x, -positions),
)
qkv(
    "another base",
    "theta 500,000",
    "rotary",
    "positions",
    declared={**QKV, "rotary_base": 10000.0},
    turn=lambda x, positions: turn(x, positions, theta=500000.0),
)
qkv(
    "not rescaled",
    "survivors are not rescaled",
    "dropout",
    "dropout",
    drop=lambda w, rate: drop(w, rate) * (1 - rate),
)
qkv(
    "rate as the share to keep",
    "p is used as the share to keep",
    "dropout",
    "dropout",
    drop=lambda w, rate: drop(w, 1 - rate) if rate else w,
)
qkv(
    "one draw for all heads",
    "one mask for all heads",
    "dropout",
    "dropout",
    drop=lambda w, rate: w * drop(torch.ones_like(w[:, :1]), rate),
)
qkv(
    "dropped and normalized again",
    "the remaining weights are normalized to 1",
    "dropout",
    "dropout",
    drop=lambda w, rate: drop(w, rate) / drop(w, rate).sum(-1, keepdim=True).clamp(min=1e-9),
)


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q *= q.shape[-1] ** -0.5
    return (q @ k.mT).softmax(-1) @ v


def reads_memory(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    strides = torch.empty(q.shape).stride()
    return attend(q.as_strided(q.shape, strides), k, v)


def views_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k.view(-1).view(k.shape), v)


def half_softmax(scores: Tensor) -> Tensor:
    rounded = scores.bfloat16() if scores.dtype == torch.float32 else scores
    return rounded.softmax(-1).to(scores.dtype)


class WithBackward(torch.autograd.Function):
    """The softmax; `change` is applied to the gradient of the scores."""

    @staticmethod
    def forward(context: Any, scores: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        weights = scores.softmax(-1)
        context.save_for_backward(weights)
        context.change = change
        return weights

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weights,) = context.saved_tensors
        right = weights * (gradient - (weights * gradient).sum(-1, keepdim=True))
        return context.change(right), None


def wrong_backward(scores: Tensor) -> Tensor:
    """The gradient is 1 % too small."""
    return WithBackward.apply(scores, lambda gradient: 0.99 * gradient)


def rounded_backward(scores: Tensor) -> Tensor:
    """Gradients of float32 scores are rounded to bfloat16."""
    single = scores.dtype == torch.float32
    return WithBackward.apply(scores, lambda g: g.bfloat16().float() if single else g)


def no_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v)


mutant("scales in place", "q *= scale", "untouched", in_place, QKV)
mutant("reads memory", "as_strided", "strided", reads_memory, QKV)
mutant("view", "raises an error for inputs that are not contiguous", "strided", views_keys, QKV)
mutant("mask not supported", "declared, but not supported", "runs", no_mask, QKV, "mask")
qkv("softmax in bfloat16", "for inputs of every precision", "precise", softmax=half_softmax)
qkv("wrong backward", "a gradient off by 1 %", "derivative", softmax=wrong_backward)

# Small faults, which a slightly weaker check would not find


def scaled(by: Callable[..., float]) -> Callable[..., Tensor]:
    """A scale that depends on the numbers of queries and keys."""
    return lambda s, q, k: s / q.shape[-1] ** 0.5 * (1 + by(q.shape[-2], k.shape[-2]))


def pair_masked(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
    may = allowed(queries, keys, mask, causal, window).clone()
    may[2:3, 4:5] = False
    return may


def unmasked_tile_of_64(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
    may = allowed(queries, keys, mask, causal, window)
    row, column = torch.arange(queries)[:, None], torch.arange(keys)
    return may | (row // 64 == column // 64) & (row >= 64) if causal else may


def unmasked_chunk(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
    return allowed(queries, keys, mask, causal and not 1 < queries < keys, window)


def all_masked(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
    may = allowed(queries, keys, mask, causal, window)
    return may & False if causal and mask is not None else may


def rounded_to(steps: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def normalized(scores: Tensor) -> Tensor:
        weights = scores.softmax(-1)
        if scores.dtype != dtype:
            return weights
        return weights + ((weights * steps).round() / steps - weights).detach()

    return normalized


def gradient_in_dead_rows(weights: Tensor, may: Tensor) -> Tensor:
    """Weights of 0 in a dead row, with the gradient of the mean."""
    return weights - (weights * ~may.any(-1, keepdim=True)).detach()


def numpy_finite_mask(q: Any, k: Any, v: Any, *, mask: Any = None) -> Any:
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = scores if mask is None else np.where(mask[:, None, None], scores, -1e9)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def rotates_values(q: Tensor, k: Tensor, v: Tensor, *, positions: Any = None) -> Tensor:
    return attend(q, k, v if positions is None else turn(v, positions), positions=positions)


def rejects_expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if 0 in q.stride():
        raise ValueError("expanded tensors are not supported")
    return attend(q, k, v)


def overwrites_mask(q: Tensor, k: Tensor, v: Tensor, *, mask: Any = None) -> Tensor:
    out = attend(q, k, v, mask=mask)
    if mask is not None:
        mask.fill_(True)
    return out


def causal_in_bfloat16(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    softmax = half_softmax if causal else RIGHT.softmax
    return attend(q, k, v, causal=causal, steps=replace(RIGHT, softmax=softmax))


def one_draw(*shape: slice) -> Callable[..., Tensor]:
    return lambda w, rate: w * drop(torch.ones_like(w[shape]), rate)


qkv("a little too much", "weights times 1 + 3e-8", "constant", drop=lambda w, rate: w * (1 + 3e-8))
qkv("a little by length", "1e-9 per key", "duplicated", scale=scaled(lambda q, k: 1e-9 * k))
qkv(
    "a little by position",
    "1e-7 per key",
    "order",
    softmax=lambda s: (s + 1e-7 * torch.arange(s.shape[-1])).softmax(-1),
)
qkv(
    "a little of another head",
    "3e-8 of another head",
    "groups",
    mix=lambda w, v: w @ v + 3e-8 * (w @ v).flip(1),
)
qkv(
    "a little of another row",
    "3e-9 of the next batch row",
    "batch",
    mix=lambda w, v: w @ v + 3e-9 * v.roll(1, 0),
)
qkv(
    "a little of other queries",
    "3e-8 of their mean",
    "rows",
    mix=lambda w, v: w @ v + 3e-8 * (w @ v).mean(-2, keepdim=True),
)
qkv(
    "a little by length, causal",
    "1e-9 per token",
    "prefix",
    "causal",
    scale=scaled(lambda q, k: 1e-9 * k),
)
qkv(
    "a little by the cache",
    "1e-9 per earlier key",
    "cache",
    "causal",
    "cache",
    scale=scaled(lambda q, k: 1e-9 * (k - q)),
)
qkv(
    "-17 for -inf",
    "masked keys have weights of 4e-8",
    "deleted",
    "mask",
    hide=lambda s, may: s - 17.0 * ~may,
)
qkv(
    "a little of the sum",
    "scores times 1 + 3e-8 tanh of their mean",
    "shifted",
    softmax=lambda s: (s * (1 + 3e-8 * s.mean(-1, keepdim=True).tanh())).softmax(-1),
)
qkv(
    "scaled by 1.003",
    "0.3 % too large",
    "scale",
    scale=lambda s, q, k: s / q.shape[-1] ** 0.5 * 1.003,
)
qkv(
    "few queries",
    "another scale if there are fewer queries than keys",
    "rows",
    scale=scaled(lambda q, k: 0.01 * (q < k)),
)
qkv(
    "a little future",
    "1e-13 of all values",
    "future",
    "causal",
    mix=lambda w, v: w @ v + 1e-13 * v.sum(-2, keepdim=True),
)
qkv(
    "tile of 64 not masked",
    "on the diagonal, beyond 64 tokens",
    "future",
    "causal",
    allowed=unmasked_tile_of_64,
)
qkv("one pair lost", "query 2 does not see key 4", "past", allowed=pair_masked)
qkv(
    "queries detached", "queries get no gradient", "gradient", scores=lambda q, k: q.detach() @ k.mT
)
qkv(
    "a little gradient",
    "1e-9 of later tokens, by a straight-through term",
    "gradient",
    "causal",
    mix=partial(mixes_future, weight=1e-9),
)
qkv(
    "chunks not masked",
    "several tokens after a cache see each other",
    "cache",
    "causal",
    "cache",
    allowed=unmasked_chunk,
)
qkv(
    "keys tiled",
    "the values are not",
    "groups",
    declared={**QKV, "kv_heads": 2},
    repeat=lambda x, times: x.repeat(1, times, 1, 1),
)
qkv(
    "values tiled",
    "the keys are not",
    "groups",
    declared={**QKV, "kv_heads": 2},
    repeat_values=lambda x, times: x.repeat(1, times, 1, 1),
)
qkv(
    "mask and causal mask all",
    "a mask and causal together mask all keys",
    "mask-and-causal",
    "mask",
    "causal",
    allowed=all_masked,
)
qkv(
    "dead rows with a gradient",
    "the output is 0, but its gradient is that of the mean",
    "dead-rows",
    "mask",
    hide=lambda s, may: s - 1e9 * ~may,
    revive=gradient_in_dead_rows,
)
mutant(
    "NumPy's -1e9",
    "a query with all keys masked attends to all keys equally",
    "dead-rows",
    numpy_finite_mask,
    {"kind": "qkv"},
    "mask",
)
qkv(
    "cap before the scale",
    "a cap of unscaled scores",
    "softcap",
    "softcap",
    cap=lambda s, c: c * (s * 8**0.5 / c).tanh() / 8**0.5,
)
qkv("fixed cap", "always 2", "softcap", "softcap", cap=lambda s, c: 2 * (s / 2).tanh())
qkv("no cap", "the option does nothing", "softcap", "softcap", cap=lambda s, c: s)
mutant("values rotated", "rotary on the values", "rotary", rotates_values, QKV, "positions")
qkv(
    "one head rotated",
    "the others are not",
    "rotary",
    "positions",
    turn=lambda x, at: torch.cat([turn(x[:, :1], at), x[:, 1:]], 1),
)
qkv(
    "slightly different base",
    "theta 10,100",
    "rotary",
    "positions",
    declared={**QKV, "rotary_base": 10000.0},
    turn=lambda x, at: turn(x, at, theta=10100.0),
)
qkv(
    "wrong rate",
    "10 % too large",
    "dropout",
    "dropout",
    drop=lambda w, rate: drop(w, 1.1 * rate) * (1 - 1.1 * rate) / (1 - rate),
)
qkv(
    "wrong rescaling",
    "0.1 % too large",
    "dropout",
    "dropout",
    drop=lambda w, rate: drop(w, rate) * (1.001 if rate else 1),
)
qkv(
    "one draw for all queries",
    "one mask for all rows",
    "dropout",
    "dropout",
    drop=one_draw(slice(None), slice(None), slice(1)),
)
qkv(
    "a rounded float32",
    "weights in steps of 2^-20",
    "precise",
    softmax=rounded_to(2**20, torch.float32),
)
qkv("a rounded bfloat16", "weights are 0 or 1", "precise", softmax=rounded_to(1, torch.bfloat16))
qkv(
    "bfloat16 throughout",
    "for inputs of every precision",
    "precise",
    softmax=lambda s: s + (s.bfloat16().to(s.dtype) - s),
    mix=lambda w, v: w.bfloat16().to(w.dtype) @ v,
)
qkv("a rounded backward", "gradients in bfloat16", "precise", softmax=rounded_backward)
mutant("causal in bfloat16", "the causal path rounds", "precise", causal_in_bfloat16, QKV, "causal")
mutant("expanded not supported", "strides of 0", "strided", rejects_expanded, QKV)
mutant("mask overwritten", "after its use", "untouched", overwrites_mask, QKV, "mask")

qkv(
    "first key lost",
    "in a step of one token after a cache",
    "cache",
    "causal",
    "cache",
    allowed=lambda q, k, m, c, w: (
        allowed(q, k, m, c, w) & (torch.arange(k) >= (1 if 1 == q < k else 0))
    ),
)


def scaled_by_position(q: Tensor, k: Tensor, v: Tensor, *, positions: Any = None) -> Tensor:
    if positions is not None:
        q = q * (1 + 0.01 * (positions > 3))[:, None]
    return attend(q, k, v, positions=positions)


mutant(
    "scaled by position",
    "queries grow beyond position 3",
    "rotary",
    scaled_by_position,
    QKV,
    "positions",
)


def same_draw(weights: Tensor, rate: float) -> Tensor:
    keep = np.random.default_rng(0).random(weights.shape) >= rate
    return weights * torch.from_numpy(keep) / (1 - rate)


qkv("same dropout mask", "the same mask in every call", "dropout", "dropout", drop=same_draw)

# Modules of one sequence


def module(
    name: str, why: str, caught_by: str, attention: Any, *features: str, **declared: Any
) -> None:
    mutant(name, why, caught_by, attention, {**SELF, "causal": True, **declared}, *features)


def wrong(**steps: Any) -> Steps:
    return replace(RIGHT, **steps)


class PublishedExercise(nn.Module):
    """The exercise of Raschka, 3.6.1, as once published: two heads of one feature, and a softmax
    over dim=1, which is the query axis of (batch, queries, keys)."""

    def __init__(self, d_in: int = 3, d_out: int = 1, heads: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(123)
            self.heads = nn.ModuleList(
                nn.ModuleDict({name: nn.Linear(d_in, d_out, bias=False) for name in "qkv"})
                for _ in range(heads)
            )

    def forward(self, x: Tensor) -> Tensor:
        contexts = []
        for head in self.heads:
            queries, keys, values = (head[name](x) for name in "qkv")
            scores = queries @ keys.mT
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=1)
            contexts.append(weights @ values)
        return torch.cat(contexts, dim=-1)


class Stateful(SelfAttention):
    """Adds a little of the last token of the last call."""

    kept: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x) + 1e-12 * self.kept
        self.kept = x.detach()[:, -1:].sum()
        return out


class LosesResult(SelfAttention):
    """The output projection is called, but its result is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.last(out)
        return out


class SubtractsBatchMean(SelfAttention):
    """Subtracts the mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean((0, 2), keepdim=True))


class DetachesInput(SelfAttention):
    """The gradient stops at the queries and keys."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class IgnoresCache(SelfAttention):
    """Every chunk ignores the earlier ones."""

    def forward(self, x: Tensor, mask: Any = None, cache: Any = False) -> Any:
        return super().forward(x, mask, None if cache is not False else False)


class ChangesInput(SelfAttention):
    """Changes its input in place."""

    def forward(self, x: Tensor, mask: Any = None) -> Any:
        return super().forward(x.add_(0.1), mask)


class ViewsInput(SelfAttention):
    """Calls view(-1) on its input."""

    def forward(self, x: Tensor, mask: Any = None) -> Any:
        return super().forward(x.view(-1).view(x.shape), mask)


module(
    "published exercise",
    "softmax over the queries, two heads of one feature",
    "constant",
    PublishedExercise(),
    width=3,
)
module(
    "module over queries",
    "softmax(dim=-2), not causal",
    "rows",
    SelfAttention(causal=False, steps=wrong(softmax=softmax_over(-2))),
    causal=False,
)
module("no causal mask", "declared, but missing", "future", SelfAttention(causal=False))
module(
    "causal reversed",
    "attends to later tokens only",
    "future",
    SelfAttention(
        steps=wrong(allowed=lambda q, k, m, c, w: torch.ones(q, k, dtype=torch.bool).triu())
    ),
)
module(
    "module shifted by one",
    "diagonal=2 instead of 1",
    "future",
    SelfAttention(steps=wrong(allowed=shift_mask(1))),
)
module(
    "mask after the softmax",
    "and the weights are not normalized again",
    "future",
    SelfAttention(steps=wrong(hide=lambda s, may: s, revive=mask_weights)),
)
module(
    "module split by a view",
    "no transpose",
    "order",
    SelfAttention(causal=False, split=view_split, merge=view_merge),
    causal=False,
)
module(
    "causal split by a view",
    "no transpose; no leak, but earlier tokens are lost",
    "past",
    SelfAttention(split=view_split, merge=view_merge),
)
module(
    "module masks itself",
    "strictly causal",
    "present",
    SelfAttention(steps=wrong(allowed=shift_mask(-1))),
)
module(
    "undeclared window",
    "a window of 3 keys",
    "past",
    SelfAttention(steps=wrong(allowed=lambda q, k, m, c, w: allowed(q, k, m, c, 3))),
)
module(
    "module scaled by the length",
    "1/sqrt(tokens)",
    "prefix",
    SelfAttention(steps=wrong(scale=lambda s, q, k: s / k.shape[-2] ** 0.5)),
)
module(
    "module softmax off by one",
    "1 + sum of exp",
    "constant",
    SelfAttention(causal=False, steps=wrong(softmax=off_by_one)),
    causal=False,
)
module(
    "module log-length scale",
    "log-length scale, not causal",
    "duplicated",
    SelfAttention(causal=False, steps=wrong(scale=lambda s, q, k: s * k.shape[-2] ** 0.1)),
    causal=False,
)
module(
    "module reversed mask",
    "True means masked",
    "masked",
    SelfAttention(
        steps=wrong(allowed=lambda q, k, m, c, w: allowed(q, k, None if m is None else ~m, c, w))
    ),
    "mask",
)
module(
    "module zeroed, not masked",
    "masked keys have weights",
    "deleted",
    SelfAttention(
        causal=False,
        steps=wrong(prepare=zeroed, allowed=lambda q, k, m, c, w: allowed(q, k, None, c, w)),
    ),
    "mask",
    causal=False,
)
module(
    "module dead rows",
    "the softmax of a row of -inf",
    "dead-rows",
    SelfAttention(steps=wrong(hide=raw_hide, revive=lambda w, may: w)),
    "mask",
)
module(
    "module dropout in evaluation",
    "p = 0.1 in evaluation mode",
    "repeatable",
    SelfAttention(steps=wrong(drop=lambda w, rate: drop(w, 0.1))),
)
module("causal, not declared", "declared as not causal", "past", SelfAttention(), causal=False)
module("stateful", "a state survives the call", "repeatable", Stateful())
module("mean over the batch", "batch rows depend on each other", "batch", SubtractsBatchMean())
module(
    "module dropout not rescaled",
    "survivors are not rescaled",
    "dropout",
    SelfAttention(dropout=0.5, steps=wrong(drop=lambda w, rate: drop(w, rate) * (1 - rate))),
    "dropout",
)
module("no dropout", "declared, but missing", "dropout", SelfAttention(), "dropout")
module("cache forgotten", "each chunk ignores the earlier ones", "cache", IgnoresCache(), "cache")
module(
    "module gradient",
    "1e-7 of later tokens, by a straight-through term",
    "gradient",
    SelfAttention(steps=wrong(mix=partial(mixes_future, weight=1e-7))),
)
module("result lost", "self.last(out) instead of out = self.last(out)", "used", LosesResult())
module("detached", "no gradient at all", "gradient", DetachesInput())
module("module in place", "x.add_", "untouched", ChangesInput())
module("module view", "raises an error for inputs that are not contiguous", "strided", ViewsInput())
module(
    "module bfloat16",
    "softmax in bfloat16",
    "precise",
    SelfAttention(steps=wrong(softmax=half_softmax)),
)
module(
    "module wrong backward",
    "off by 1 %",
    "derivative",
    SelfAttention(steps=wrong(softmax=wrong_backward)),
)
module(
    "module mask not supported", "declared, but not supported", "runs", NormalizesAgain(), "mask"
)


def self_attention(x: Tensor, **options: Any) -> Tensor:
    one_head = x[:, None]
    steps = wrong(allowed=without("causal"))
    return attend(one_head, one_head, one_head, steps=steps, **options)[:, 0]


mutant(
    "module mask without causal",
    "a mask replaces the causal one",
    "mask-and-causal",
    self_attention,
    {**SELF, "engine": "torch"},
    "mask",
    "causal",
)

# Models of tokens


class ShiftsInputs(Model):
    """Uses the previous token instead of the token itself."""

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens.roll(1, -1).index_fill(-1, torch.tensor([0]), 0))


class CountsPadding(Model):
    """Positions count padding."""

    def positions(self, tokens: Tensor, mask: Any, before: int) -> Tensor:
        return super().positions(tokens, None, before)


class CountsFromTheEnd(Model):
    """Positions count back from the last token."""

    def positions(self, tokens: Tensor, mask: Any, before: int) -> Tensor:
        return super().positions(tokens, mask, before).flip(-1)


class RestartsPositions(Model):
    """With a cache, positions begin at 0 again."""

    def positions(self, tokens: Tensor, mask: Any, before: int) -> Tensor:
        return super().positions(tokens, mask, 0)


class SeesEarlierDocument(Model):
    """A document attends to earlier documents."""

    def same_document(self, documents: Tensor) -> Tensor:
        return (documents[:, :, None] >= documents[:, None])[:, None]


class SeesLaterDocument(Model):
    """A document attends to later documents, where the causal mask allows it."""

    def same_document(self, documents: Tensor) -> Tensor:
        return (documents[:, :, None] <= documents[:, None])[:, None]


class LabelsNotShifted(Model):
    """The labels are not shifted."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), labels.flatten())


class SmoothsLabels(Model):
    """The loss has a label smoothing of 0.001."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        flat = logits[:, :-1].flatten(0, 1)
        return cross_entropy(flat, labels[:, 1:].flatten(), label_smoothing=1e-3)


class LosesBias(Model):
    """The state does not contain the last bias."""

    def state_dict(self, *args: Any, **options: Any) -> Any:
        state = super().state_dict(*args, **options)
        return {name: value for name, value in state.items() if name != "mlp.2.bias"}

    def load_state_dict(self, state: Any, *args: Any, **options: Any) -> Any:
        return super().load_state_dict(state, strict=False)


class LabelsShiftedTwice(Model):
    """The labels are shifted twice."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten())


class LoadsUntied(Model):
    """Loading gives the output layer another weight than the embedding."""

    def load_state_dict(self, state: Any, *args: Any, **options: Any) -> Any:
        keys = super().load_state_dict(state, *args, **options)
        self.head.weight = nn.Parameter(state["head.weight"])
        return keys


class SubtractsMeanEmbedding(Model):
    """Subtracts the mean of the embeddings over the batch."""

    def embed(self, tokens: Tensor) -> Tensor:
        x = super().embed(tokens)
        return x - x.mean(0, keepdim=True)


class UnusedLayer(Model):
    """Has a second attention that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.second = SelfAttention(16)


class OverwritesToken(Model):
    """Overwrites the first token."""

    def embed(self, tokens: Tensor) -> Tensor:
        tokens[:, 0] = 0
        return super().embed(tokens)


class DetachesEmbeddings(Model):
    """The embeddings get no gradient."""

    def embed(self, tokens: Tensor) -> Tensor:
        return super().embed(tokens).detach()


def model(name: str, why: str, caught_by: str, attention: Any, *features: str) -> None:
    mutant(name, why, caught_by, attention, MODEL, *features)


def gpt(**steps: Any) -> Model:
    return Model(steps=wrong(**steps))


model("model without a mask", "attends to later tokens", "future", Model(causal=False))
model("model shifted by one", "diagonal=2 instead of 1", "future", gpt(allowed=shift_mask(1)))
model("inputs shifted", "the inputs are shifted as well as the labels", "present", ShiftsInputs())
model(
    "model undeclared window",
    "a window of 3 keys",
    "past",
    gpt(allowed=lambda q, k, m, c, w: allowed(q, k, m, c, 3)),
)
model(
    "padding has positions",
    "padding is counted: the text begins at position 2",
    "padding",
    CountsPadding(),
    "mask",
)
model(
    "padding is seen",
    "the mask is not used",
    "padding",
    gpt(allowed=lambda q, k, m, c, w: allowed(q, k, None, c, w)),
    "mask",
)
model(
    "positions from the end", "the first token is the last position", "prefix", CountsFromTheEnd()
)
model(
    "cache without positions", "positions start at 0 again", "cache", RestartsPositions(), "cache"
)
model("documents leak", "tokens see earlier ones", "documents", SeesEarlierDocument(), "documents")
model(
    "labels not shifted",
    "logits[t] are compared with token t",
    "labels",
    LabelsNotShifted(),
    "labels",
)
model(
    "labels shifted twice",
    "logits[t] are compared with token t + 2",
    "labels",
    LabelsShiftedTwice(),
    "labels",
)
model("tied by a copy", "the output layer has another weight", "tied", Model(tie=False), "tied")
model("untied by loading", "a parameter is assigned", "tied", LoadsUntied(), "tied")
model("model's batch mean", "batch rows depend on each other", "batch", SubtractsMeanEmbedding())
model(
    "model's dropout in evaluation",
    "p = 0.1 in evaluation mode",
    "repeatable",
    gpt(drop=lambda w, rate: drop(w, 0.1)),
)
model("model without dropout", "declared, but missing", "dropout", Model(), "dropout")
model("model's gradient cut", "embeddings are detached", "gradient", DetachesEmbeddings())
model("model in bfloat16", "softmax in bfloat16", "precise", gpt(softmax=half_softmax))
model("model's wrong backward", "off by 1 %", "derivative", gpt(softmax=wrong_backward))
model(
    "model window not supported",
    "declared, but not supported",
    "runs",
    Model(),
    "documents",
    "window",
)
model("model in place", "the first token is overwritten", "untouched", OverwritesToken())
model("layer not called", "created, but not called", "used", UnusedLayer())
module(
    "half over queries",
    "half the weights from softmax(dim=-2)",
    "rows",
    SelfAttention(causal=False, steps=wrong(softmax=lambda s: (s.softmax(-1) + s.softmax(-2)) / 2)),
    causal=False,
)
model(
    "a little padding",
    "-17 instead of -inf: weights of 4e-8",
    "padding",
    gpt(hide=lambda s, may: s - 17.0 * ~may),
    "mask",
)
model(
    "a little document",
    "-17 instead of -inf: weights of 4e-8",
    "documents",
    gpt(hide=lambda s, may: s - 17.0 * ~may),
    "documents",
)
model(
    "documents see the next",
    "a document attends to the next one",
    "documents",
    SeesLaterDocument(causal=False),
    "documents",
)
model("labels smoothed", "label smoothing of 0.001", "labels", SmoothsLabels(), "labels")
model("incomplete state", "a bias is not saved", "tied", LosesBias(), "tied")


def window_without_mask(queries: int, keys: int, mask: Any, causal: bool, window: Any) -> Tensor:
    return allowed(queries, keys, mask, causal, window if mask is None else None)


class FirstHead(SelfAttention):
    """The context of the first head for all heads."""

    def __init__(self) -> None:
        first = wrong(mix=lambda w, v: (w @ v)[:, :1].expand(-1, 4, -1, -1))
        super().__init__(causal=True, steps=first)


qkv(
    "window lost with a mask",
    "a mask replaces the window",
    "formula",
    *("mask", "causal", "window"),
    allowed=window_without_mask,
)
module("first head for all", "the others have no influence", "formula", FirstHead())
module(
    "module not scaled",
    "no 1/sqrt(d_k)",
    "scale",
    SelfAttention(steps=wrong(scale=lambda scores, q, k: scores)),
)
