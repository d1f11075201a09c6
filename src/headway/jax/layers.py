"""The layers of the JAX engine: pure functions of an input and a dictionary of parameters.

The attention formula is in `headway.attention`; `models.gpt.shapes` lists the parameters.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from headway.attention import dispatch
from headway.attention.arrays import Array
from headway.attention.formula import Attend
from headway.attention.heads import merge, split
from headway.attention.norms import rms_norm
from headway.attention.options import combine
from headway.attention.positions import alibi, relative
from headway.attention.spec import Spec
from headway.ladder.rung import Rung
from headway.models.gpt import GPTConfig, attention_shapes, attention_spec, rung_config, rung_spec
from headway.models.parameters import Shape
from headway.tracing import tap

Params = Mapping[str, Array]
Sequence_ = Float[Array, "batch tokens width"]
# The position of the first token: the same for all rows, or one per row.
Position = int | Int[Array, ""] | Int[Array, " batch"]


class Cache(NamedTuple):
    """The keys and values of the tokens so far, for one layer, in arrays of fixed length.

    Entries after the last token are arbitrary: the causal mask hides them from every query.
    """

    keys: Float[Array, "batch heads capacity d_k"]
    values: Float[Array, "batch heads capacity d_v"]


def extended(cache: Cache, keys: Array, values: Array, first: Position) -> Cache:
    """Return the cache with new keys and values, written at the positions from `first`."""
    row = jnp.broadcast_to(jnp.asarray(first, jnp.int32), keys.shape[:1])

    def write_row(cached: Array, new: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(cached, new.astype(cached.dtype), start, axis=-2)

    write = jax.vmap(write_row)
    return Cache(write(cache.keys, keys, row), write(cache.values, values, row))


# A function of (x, params, config, spec, cache, first) that returns the output of attention and the
# extended cache. first: the position of the first token of x.
Apply = Callable[
    [Sequence_, Params, GPTConfig, Spec, Cache | None, Position], tuple[Sequence_, Cache | None]
]


class Attention(NamedTuple):
    """The attention of a layer: the shapes of its parameters, and the function that applies it.

    Dropout is applied only when the Spec of the call has a seed. can_cache: whether `apply` accepts
    a cache.
    """

    shapes: Callable[[GPTConfig], Mapping[str, Shape]]
    apply: Apply
    can_cache: bool


@cache
def with_attend(attend: Attend) -> Attention:
    """Return `multi_head` with another attention function.

    To choose a kernel, pass `partial(dispatch.run, kernel=...)`. Create the result once and reuse
    it: JAX compiles a model again for every new `Attention`.
    """
    return Attention(attention_shapes, partial(_multi_head, attend), can_cache=True)


@cache
def of_rung(rung: Rung, attend: Attend | None = None) -> Attention:
    """Return a rung of the ladder as the attention of a layer."""

    def shapes(config: GPTConfig) -> Mapping[str, Shape]:
        rung_spec(rung, config)  # raises ValueError for what the rung does not support
        return rung.shapes(rung_config(rung, config))

    return Attention(shapes, partial(_rung, rung, attend), can_cache=False)


def _multi_head(
    attend: Attend,
    x: Sequence_,
    params: Params,
    config: GPTConfig,
    spec: Spec,
    cache: Cache | None,
    first: Position,
) -> tuple[Sequence_, Cache | None]:
    groups = config.attention.groups
    queries = split(linear(x, part(params, "q")), config.attention.heads)
    keys = split(linear(x, part(params, "k")), groups)
    values = split(linear(x, part(params, "v")), groups)
    group = config.attention.heads // groups
    if config.attention.qk_norm:
        queries, keys = tap("unnormalized_queries", queries), tap("unnormalized_keys", keys, group)
        queries = rms_norm(queries, params["q_norm.weight"], config.norm.eps)
        keys = rms_norm(keys, params["k_norm.weight"], config.norm.eps)
    positions = positions_of(x, first)
    if config.positions.kind == "rotary":
        per_head = positions if positions.ndim == 1 else positions[:, None]  # equal in all heads
        rotary, length = config.positions.rotary, positions.max() + 1
        queries, keys = tap("unrotated_queries", queries), tap("unrotated_keys", keys, group)
        queries, keys = (rotary.rotate(x, per_head, length) for x in (queries, keys))
    spec = combine(attention_spec(config), spec, training=spec.seed is not None)
    if cache is not None:
        cache = extended(cache, keys, values, first)
        keys, values = cache
        spec = spec._replace(offset=first)
    position_bias = _position_bias(params, config)
    if position_bias is not None:
        row_bias = partial(position_bias, key_positions=jnp.arange(keys.shape[-2]))
        bias = row_bias(positions) if positions.ndim == 1 else jax.vmap(row_bias)(positions)
        spec = spec._replace(bias=bias.astype(x.dtype))
    context = merge(attend(queries, keys, values, spec))
    return tap("output", linear(context, part(params, "output"))), cache


# Multi-head attention: project -> split -> (rotary, cache) -> attend -> merge -> output.
multi_head = with_attend(dispatch.run)


def positions_of(x: Sequence_, first: Position) -> Array:
    """The positions of these tokens: (tokens,), or (batch, tokens) when `first` has one per row."""
    return jnp.asarray(first, jnp.int32)[..., None] + jnp.arange(x.shape[1], dtype=jnp.int32)


def _position_bias(params: Params, config: GPTConfig) -> Callable[..., Array] | None:
    """A function from positions of queries and keys to a bias (heads, Tq, Tk), or None."""
    if config.positions.kind == "alibi":
        return partial(alibi, config.attention.heads)
    if config.positions.kind == "relative":
        return partial(relative, params["position_bias.table"])
    return None


def _rung(
    rung: Rung,
    attend: Attend | None,
    x: Sequence_,
    params: Params,
    config: GPTConfig,
    spec: Spec,
    cache: Cache | None,
    first: Position,
) -> tuple[Sequence_, Cache | None]:
    if cache is not None:
        raise ValueError(f"the rung {rung.name!r} does not support a cache")
    spec = combine(rung_spec(rung, config), spec, training=spec.seed is not None)
    heads = rung_config(rung, config).heads
    return rung(x, params, spec, heads=heads, attend=attend), None


def linear(x: Float[Array, "*batch d_in"], params: Params) -> Float[Array, "*batch d_out"]:
    """x @ weight^T, plus the bias if there is one; the weight has the shape (d_out, d_in)."""
    product = jnp.einsum("...i,oi->...o", x, params["weight"])  # without a transposed copy
    return product + params["bias"] if "bias" in params else product


def norm(x: Sequence_, params: Params, config: GPTConfig) -> Sequence_:
    """LayerNorm (Ba et al. 2016) or RMSNorm, computed in float32 or a wider dtype."""
    if config.norm.kind == "rms":
        return rms_norm(x, params["weight"], config.norm.eps)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + config.norm.eps)
    return (centred / deviation).astype(x.dtype) * params["weight"] + params["bias"]


def mlp(x: Sequence_, params: Params, config: GPTConfig) -> Sequence_:
    """The MLP of a layer: activation(x up) down; with a gate (activation(x gate) * x up) down."""
    up, activation = linear(x, part(params, "up")), ACTIVATIONS[config.mlp.activation]
    if config.mlp.is_gated:
        hidden = activation(linear(x, part(params, "gate"))) * up
    else:
        hidden = activation(up)
    return tap("output", linear(tap("hidden", hidden), part(params, "down")))


# The keys are those of `headway.models.gpt.ACTIVATIONS`.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": partial(jax.nn.gelu, approximate=True),
        "gelu-exact": partial(jax.nn.gelu, approximate=False),
        "quick-gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "relu": jax.nn.relu,
        "relu2": lambda x: jax.nn.relu(x) ** 2,
        "silu": jax.nn.silu,
        "tanh": jnp.tanh,
    }
)


def part(params: Params, name: str) -> Params:
    """Return the parameters whose names start with `name.`, with that prefix removed."""
    prefix = name + "."
    return {n.removeprefix(prefix): value for n, value in params.items() if n.startswith(prefix)}
