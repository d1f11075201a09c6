"""GPT in JAX: tokens in, the scores of every next token out.

    params = gpt.init(config, jax.random.key(0))
    logits = gpt.forward(params, tokens, config)

The parameters are arrays by the names that they have in a checkpoint, in one flat dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from headway.attention.arrays import Array
from headway.attention.dropout import Seed, dropout, fold
from headway.attention.masks import Mask
from headway.attention.positions import sinusoidal
from headway.jax.layers import (
    Attention,
    Cache,
    Params,
    Position,
    mlp,
    multi_head,
    norm,
    part,
    positions_of,
)
from headway.models import gpt as table
from headway.models.gpt import INITIAL, GPTConfig
from headway.tracing import scope, tap

Logits = Float[Array, "batch tokens vocabulary"]


@final
@dataclass(frozen=True, eq=False)
class Model:
    """A GPT with its parameters, as a run has it: tokens in, logits out."""

    params: Params
    config: GPTConfig
    attention: Attention = multi_head

    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Logits:
        """The logits of the token after each token."""
        return forward(self.params, tokens, self.config, self.attention)

    @property
    def can_cache(self) -> bool:
        """Whether the attention can go on from a cache: a rung sees its tokens whole, and where
        tokens see later ones all that came before changes with each."""
        return self.config.causal and self.attention.can_cache


def init(
    config: GPTConfig, key: int | Array, attention: Attention = multi_head
) -> dict[str, Array]:
    """The first values, those of PyTorch's GPT with the same seed.

    key: the seed, or `jax.random.key` of it. Raises ValueError for a rung that does not fit.
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
    *,
    mask: Mask | None = None,
    seed: Seed | None = None,
) -> Logits:
    """The logits of the token after each token.

    mask: on top of the causal one (padding, documents). seed: for dropout, while training; None
    drops nothing. Raises ValueError beyond the context.
    """
    logits, _ = _run(params, tokens, config, attention, mask=mask, seed=seed)
    return logits


def forward_cached(
    params: Params,
    tokens: Int[Array, "batch tokens"],
    config: GPTConfig,
    attention: Attention,
    caches: Sequence[Cache],
    first: Position,
) -> tuple[Logits, list[Cache]]:
    """The logits of tokens that come after others, and the caches with these in them as well.

    first: the position of the first of these tokens, an int or one a row, arrays allowed. Rows
    may be filled up behind their last token: what stands there is overwritten as they go on.
    """
    logits, found = _run(params, tokens, config, attention, caches=caches, first=first)
    return logits, [cache for cache in found if cache is not None]


def empty_caches(params: Params, config: GPTConfig, batch: int) -> list[Cache]:
    """A cache for each layer, as long as the context, in the dtype of the parameters."""
    dtype = next(iter(params.values())).dtype
    shape = (batch, config.groups, config.context, config.head_dim)
    return [Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers)]


def _run(
    params: Params,
    tokens: Int[Array, "batch tokens"],
    config: GPTConfig,
    attention: Attention,
    *,
    mask: Mask | None = None,
    caches: Sequence[Cache] | None = None,
    first: Position = 0,
    seed: Seed | None = None,
) -> tuple[Logits, list[Cache | None]]:
    names, body = config.names, part(params, config.names.body)
    rate = 0.0 if seed is None else config.dropout
    if tokens.shape[-1] > config.context:
        raise ValueError(f"{tokens.shape[-1]} tokens do not fit a context of {config.context}")
    x = body[f"{names.embedding}.weight"][tokens]
    positions = positions_of(x, first)
    if config.positions == "learned":
        x = x + body[f"{names.positions}.weight"][positions]
    if config.positions == "sinusoidal":  # as large as the embeddings are at first
        wide = jnp.promote_types(x.dtype, jnp.float32)  # bfloat16 cannot tell 256 from 257
        waves = sinusoidal(positions.astype(wide), config.width) * (INITIAL * 2**0.5)
        x = x + waves.astype(x.dtype)
    x = tap("embedded", dropout(x, rate, fold(seed, 0)))
    found: list[Cache | None] = []
    for layer in range(config.layers):
        with scope(f"blocks.{layer}"):
            x, cache = _block(
                x,
                part(body, f"{names.blocks}.{layer}"),
                config,
                attention,
                mask=mask,
                cache=None if caches is None else caches[layer],
                first=first,
                seed=fold(seed, 1 + layer),
            )
        found.append(cache)
    x = tap("final_norm", norm(x, part(body, names.final_norm), config))
    head = body[f"{names.embedding}.weight"] if config.tied else params["lm_head.weight"]
    return tap("logits", x @ head.mT), found


def _block(
    x: Array,
    params: Params,
    config: GPTConfig,
    attention: Attention,
    *,
    mask: Mask | None,
    cache: Cache | None,
    first: Position,
    seed: Seed | None,
) -> tuple[Array, Cache | None]:
    """x + attention(norm(x)), then x + mlp(norm(x)): norms first, as in GPT-2."""
    names, rate = config.names, 0.0 if seed is None else config.dropout
    normed = tap("attention_norm", norm(x, part(params, names.attention_norm), config))
    with scope("attention"):
        found, cache = attention.apply(
            normed,
            part(params, names.attention),
            config,
            mask=mask,
            cache=cache,
            first=first,
            seed=fold(seed, 0),
        )
    x = tap("after_attention", x + dropout(found, rate, fold(seed, 1)))
    normed = tap("mlp_norm", norm(x, part(params, names.mlp_norm), config))
    with scope("mlp"):
        thought = mlp(normed, part(params, names.mlp), config)
    return tap("after_mlp", x + dropout(thought, rate, fold(seed, 2))), cache


def _seed_of(key: Array) -> int:
    """The number that `jax.random.key` was made of."""
    high, low = np.asarray(jax.random.key_data(key), dtype=np.uint64).ravel()[-2:]
    return int(high) << 32 | int(low)
