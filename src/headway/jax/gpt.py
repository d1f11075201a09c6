"""GPT in JAX: takes tokens and returns the logits of the next token at every position.

    params = gpt.init(config, jax.random.key(0))
    logits = gpt.forward(params, tokens, config)

The parameters are one flat dictionary of arrays, with the same names as in a checkpoint.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from headway.attention.arrays import Array
from headway.attention.dropout import drop
from headway.attention.positions import sinusoidal
from headway.attention.spec import DEFAULT, Spec, fold
from headway.jax.layers import (
    ACTIVATIONS,
    Attention,
    Cache,
    Params,
    Position,
    linear,
    mlp,
    multi_head,
    norm,
    part,
    positions_of,
)
from headway.models import gpt as table
from headway.models.gpt import SINUSOIDAL, GPTConfig
from headway.tracing import scope, tap

Logits = Float[Array, "batch tokens vocabulary"]


@final
@dataclass(frozen=True, eq=False)
class Model:
    """A GPT with its parameters; call it with tokens to get the logits."""

    params: Params
    config: GPTConfig
    attention: Attention = multi_head

    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Logits:
        """Return the logits of the next token at every position."""
        return forward(self.params, tokens, self.config, self.attention)

    @property
    def can_cache(self) -> bool:
        """Whether the model can generate from a cache. A rung needs the whole text every time;
        without a causal mask each new token changes the outputs of all earlier ones."""
        return self.config.attention.causal and self.attention.can_cache


def init(
    config: GPTConfig, key: int | Array, attention: Attention = multi_head
) -> dict[str, Array]:
    """Return the initial parameters, which equal those of the PyTorch engine for the same seed.

    key: the seed, or `jax.random.key(seed)`. Raises ValueError when the config has options that the
    rung does not support.
    """
    seed = key if isinstance(key, int) else _seed_of(key)
    shapes = table.shapes(config, attention.shapes(config))
    return {
        name: jnp.asarray(table.initial(name, shape, config.layers, seed))
        for name, shape in shapes.items()
    }


def forward(
    params: Params,
    tokens: Int[Array, "batch tokens"],
    config: GPTConfig,
    attention: Attention = multi_head,
    spec: Spec = DEFAULT,
) -> Logits:
    """Return the logits of the next token at every position.

    spec: options of this call: an extra mask that is combined with the causal one (padding,
    documents), the seed of dropout (no dropout without it), the batch offset. Raises ValueError
    when there are more tokens than the context holds.
    """
    x, _ = features(params, tokens, config, attention, spec)
    return logits(params, x, config)


def features(
    params: Params,
    tokens: Int[Array, "batch tokens"],
    config: GPTConfig,
    attention: Attention = multi_head,
    spec: Spec = DEFAULT,
    caches: Sequence[Cache] | None = None,
    first: Position = 0,
    *,
    activation_checkpointing: bool = False,
) -> tuple[Float[Array, "batch tokens width"], list[Cache | None]]:
    """Return the residual stream after the last norm, and the updated caches; None without caches.

    The other arguments are those of `forward` and `forward_cached`.
    activation_checkpointing: compute each block again in the backward pass, which needs less memory
    (Chen et al. 2016).
    """
    if tokens.shape[-1] > config.context:
        raise ValueError(f"{tokens.shape[-1]} tokens do not fit a context of {config.context}")
    x = params["embedding.weight"][tokens]
    positions = positions_of(x, first)
    if config.positions.kind == "learned":
        x = x + params["position_embedding.weight"][positions]
    if config.positions.kind == "sinusoidal":  # scaled to the initial embeddings
        x = x + sinusoidal(positions, config.width, like=x) * SINUSOIDAL
    if config.segments:
        x = x + params["segment_embedding.weight"][0]
    if config.norm.placement == "after":
        x = norm(x, part(params, "embedding_norm"), config)
    spec = spec._replace(dropout=0.0 if spec.seed is None else config.dropout)
    x = tap("embedded", drop(x, fold(spec, 0)))
    new: list[Cache | None] = []
    for layer in range(config.layers):
        cache = None if caches is None else caches[layer]
        run: Callable[..., tuple[Array, Cache | None]] = partial(
            _block,
            config=config,
            attention=attention,
            spec=fold(spec, 1 + layer),
            cache=cache,
            first=first,
        )
        if activation_checkpointing:
            run = jax.checkpoint(run)
        with scope(f"blocks.{layer}"):
            x, cache = run(x, part(params, f"blocks.{layer}"))
        new.append(cache)
    return normalized(params, x, config), new


def normalized(
    params: Params, stream: Float[Array, "batch tokens width"], config: GPTConfig
) -> Float[Array, "batch tokens width"]:
    """The residual stream after the last norm, if the config places one there."""
    if config.norm.placement == "after":
        return stream
    return tap("final_norm", norm(stream, part(params, "final_norm"), config))


def logits(
    params: Params, features: Float[Array, "*rows width"], config: GPTConfig
) -> Float[Array, "*rows vocabulary"]:
    """The logits of these features."""
    if config.output == "transform":
        hidden = linear(features, part(params, "transform.linear"))
        hidden = ACTIVATIONS[config.mlp.activation](hidden)
        features = norm(hidden, part(params, "transform.norm"), config)
    weight = params["embedding.weight" if config.tied else "head.weight"]
    return tap("logits", linear(features, {**part(params, "head"), "weight": weight}))


def forward_cached(
    params: Params,
    tokens: Int[Array, "batch tokens"],
    config: GPTConfig,
    attention: Attention,
    caches: Sequence[Cache],
    first: Position,
) -> tuple[Logits, list[Cache]]:
    """Return the logits of tokens that continue a cached text, and the updated caches.

    first: the position of the first of these tokens: one integer, or an array with one per row.
    Rows may be padded on the right: later calls overwrite the cache entries of the padding.
    """
    x, new = features(params, tokens, config, attention, DEFAULT, caches, first)
    return logits(params, x, config), [cache for cache in new if cache is not None]


def empty_caches(params: Params, config: GPTConfig, batch: int, capacity: int) -> list[Cache]:
    """One empty cache per layer for `capacity` tokens, in the dtype of the parameters."""
    dtype = next(iter(params.values())).dtype
    shape = (batch, config.attention.groups, capacity, config.d_k)
    return [Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers)]


def _block(
    x: Array,
    params: Params,
    config: GPTConfig,
    attention: Attention,
    spec: Spec,
    cache: Cache | None,
    first: Position,
) -> tuple[Array, Cache | None]:
    """A layer: see `headway.torch.gpt.Block`."""
    is_before = config.norm.placement == "before"

    def normalized(x: Array, name: str) -> Array:
        return norm(x, part(params, name), config)

    inputs = tap("attention_norm", normalized(x, "attention_norm")) if is_before else x
    with scope("attention"):
        update, cache = attention.apply(
            inputs, part(params, "attention"), config, fold(spec, 0), cache, first
        )
    x = x + drop(update, fold(spec, 1))
    x = tap("after_attention", x if is_before else normalized(x, "attention_norm"))
    inputs = tap("mlp_norm", normalized(x, "mlp_norm")) if is_before else x
    with scope("mlp"):
        update = mlp(inputs, part(params, "mlp"), config)
    x = x + drop(update, fold(spec, 2))
    return tap("after_mlp", x if is_before else normalized(x, "mlp_norm")), cache


def _seed_of(key: Array) -> int:
    """Return the integer seed from which `jax.random.key` made this key."""
    high, low = np.asarray(jax.random.key_data(key), dtype=np.uint64).ravel()[-2:]
    return int(high) << 32 | int(low)
