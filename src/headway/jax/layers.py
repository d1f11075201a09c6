"""The layers of the JAX engine: pure functions of an input and of parameters by name.

The mathematics is that of `parts`; what is here is how the parameters are named, and the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from headway.attention.arrays import Array
from headway.attention.dispatch import attend as default_attend
from headway.attention.dropout import Seed
from headway.attention.formula import MaskLike
from headway.attention.heads import merge, split
from headway.attention.masks import Mask, both, causal
from headway.attention.norms import rms_norm
from headway.attention.positions import alibi, relative, rotary
from headway.attention.projections import linear, output, project, project_fused
from headway.ladder.rung import Rung
from headway.models.gpt import NORMALIZERS, GPTConfig, Shape, attention_shapes, in_place
from headway.tracing import tap

Params = Mapping[str, Array]
Sequence_ = Float[Array, "batch tokens width"]
Position = int | Int[Array, ""] | Int[Array, " batch"]  # of the first token, of all rows or of each


class Cache(NamedTuple):
    """The keys and values of the tokens so far, for one layer, in arrays that never grow.

    Places behind the last token hold anything: no query is late enough to see them.
    """

    keys: Float[Array, "batch heads capacity d_k"]
    values: Float[Array, "batch heads capacity d_v"]


def extended(cache: Cache, keys: Array, values: Array, first: Position) -> Cache:
    """The cache with the keys and values of tokens that begin at the position `first`."""
    row = jnp.broadcast_to(jnp.asarray(first, jnp.int32), keys.shape[:1])

    def written(whole: Array, new: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, new.astype(whole.dtype), start, axis=-2)

    write = jax.vmap(written)
    return Cache(write(cache.keys, keys, row), write(cache.values, values, row))


class Apply(Protocol):
    """What each token found, and the cache with it in it."""

    def __call__(
        self,
        x: Sequence_,
        params: Params,
        config: GPTConfig,
        *,
        mask: Mask | None,
        cache: Cache | None,
        first: Position,
        seed: Seed | None,
    ) -> tuple[Sequence_, Cache | None]: ...


class Attention(NamedTuple):
    """What may stand in the attention's place: the shapes of its parameters, and the function.

    seed: for dropout; None drops nothing. can_cache: whether it goes on from a cache.
    """

    shapes: Callable[[GPTConfig], Mapping[str, Shape]]
    apply: Apply
    can_cache: bool


@cache
def with_attend(attend: Callable[..., Array]) -> Attention:
    """`multi_head`, with this function for the work: `partial(headway.attend, kernel="plain")`.

    Make it once and keep it: what is compiled with another one is compiled again.
    """
    return Attention(attention_shapes, partial(_multi_head, attend), can_cache=True)


@cache
def of_rung(rung: Rung, attend: Callable[..., Array] | None = None) -> Attention:
    """A rung of the ladder in the attention's place, see `models.gpt.in_place`."""

    def shapes(config: GPTConfig) -> Mapping[str, Shape]:
        return rung.shapes(in_place(rung, config).sizes)

    return Attention(shapes, partial(_rung, rung, attend), can_cache=False)


def _multi_head(
    attend: Callable[..., Array],
    x: Sequence_,
    params: Params,
    config: GPTConfig,
    *,
    mask: Mask | None,
    cache: Cache | None,
    first: Position,
    seed: Seed | None,
) -> tuple[Sequence_, Cache | None]:
    gpt2 = config.norm == "layer"
    if gpt2:
        d_q = config.heads * config.head_dim
        found = project_fused(x, params["c_attn.weight"], params["c_attn.bias"], d_q=d_q)
    else:
        found = project(x, *(params[f"{name}_proj.weight"].mT for name in "qkv"))
    heads = (config.heads, config.groups, config.groups)
    queries, keys, values = (split(each, count) for each, count in zip(found, heads, strict=True))
    if config.qk_norm:
        queries = rms_norm(queries, params["q_norm.weight"], config.eps)
        keys = rms_norm(keys, params["k_norm.weight"], config.eps)
    positions = positions_of(x, first)
    if config.positions == "rotary":
        turned = positions if positions.ndim == 1 else positions[:, None]  # the same in every head
        queries, keys = rotary(queries, turned), rotary(keys, turned)
    options: dict[str, Any] = {}
    if cache is not None:
        cache = extended(cache, keys, values, first)
        keys, values = cache
        options["offset"] = first
    bias_of = _bias_of(params, config)
    if bias_of is not None:
        seen = jnp.arange(keys.shape[-2])
        of_row = partial(bias_of, key_positions=seen)
        bias = of_row(positions) if positions.ndim == 1 else jax.vmap(of_row)(positions)
        options["bias"] = bias.astype(x.dtype)
    if config.normalizer != "softmax":
        options["normalizer"] = NORMALIZERS[config.normalizer]
    if config.scale is not None:
        options["scale"] = config.scale
    context = merge(
        attend(
            queries,
            keys,
            values,
            mask=_together(causal if config.causal else None, mask),
            dropout=0.0 if seed is None else config.dropout,
            seed=seed,
            **options,
        )
    )
    if gpt2:
        mixed = output(context, params["c_proj.weight"], params["c_proj.bias"])
    else:
        mixed = output(context, params["o_proj.weight"].mT)
    return tap("output", mixed), cache


# The production attention, project -> split -> (rotary, cache) -> attend -> merge -> output.
multi_head = with_attend(default_attend)


def positions_of(x: Sequence_, first: Position) -> Array:
    """Where these tokens stand: (tokens,), or (batch, tokens) where each row begins elsewhere."""
    return jnp.asarray(first, jnp.int32)[..., None] + jnp.arange(x.shape[1], dtype=jnp.int32)


def _bias_of(params: Params, config: GPTConfig) -> Callable[..., Array] | None:
    """From the positions of queries and keys to a bias (heads, Tq, Tk) of the scores."""
    if config.positions == "alibi":
        return partial(alibi, config.heads)
    if config.positions == "relative":
        return partial(relative, params["bias_of.table"])
    return None


def _rung(
    rung: Rung,
    attend: Callable[..., Array] | None,
    x: Sequence_,
    params: Params,
    config: GPTConfig,
    *,
    mask: Mask | None,
    cache: Cache | None,
    first: Position,
    seed: Seed | None,
) -> tuple[Sequence_, Cache | None]:
    if cache is not None:
        raise ValueError(f"the rung {rung.name!r} works without a cache")
    sizes, dropout, own = in_place(rung, config)
    found = rung.apply(
        x,
        params,
        heads=sizes.heads,
        mask=_together(own, mask),
        dropout=0.0 if seed is None else dropout,
        seed=seed,
        attend=attend,
    )
    return found, None


def norm(x: Sequence_, params: Params, config: GPTConfig) -> Sequence_:
    """LayerNorm (Ba et al. 2016), or RMSNorm, in float32 at least."""
    if config.norm == "rms":
        return rms_norm(x, params["weight"], config.eps)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    size = jnp.sqrt((centred**2).mean(-1, keepdims=True) + config.eps)
    return (centred / size).astype(x.dtype) * params["weight"] + params["bias"]


def mlp(x: Sequence_, params: Params, config: GPTConfig) -> Sequence_:
    """gelu(x c_fc) c_proj with tanh's GELU; relu(x up)^2 down; or (silu(x gate) * x up) down."""
    if config.mlp == "gelu":
        inner = linear(x, params["c_fc.weight"], params["c_fc.bias"])
        hidden = tap("hidden", jax.nn.gelu(inner, approximate=True))
        return tap("output", linear(hidden, params["c_proj.weight"], params["c_proj.bias"]))
    up = linear(x, params["up_proj.weight"].mT)
    if config.mlp == "relu2":
        hidden = jax.nn.relu(up) ** 2
    else:
        hidden = jax.nn.silu(linear(x, params["gate_proj.weight"].mT)) * up
    return tap("output", linear(tap("hidden", hidden), params["down_proj.weight"].mT))


def part(params: Params, name: str) -> Params:
    """The parameters below a name, without it."""
    start = name + "."
    return {n.removeprefix(start): value for n, value in params.items() if n.startswith(start)}


def _together(own: MaskLike, other: Mask | None) -> MaskLike:
    return own if other is None else both(own, other)
