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
from headway.attention.dropout import drop
from headway.attention.positions import sinusoidal
from headway.attention.spec import DEFAULT, Spec, fold
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
        return self.config.attention.causal and self.attention.can_cache


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
    spec: Spec = DEFAULT,
) -> Logits:
    """The logits of the token after each token.

    spec: the options of this call: a mask on top of the causal one (padding, documents), the seed
    of dropout, without which nothing is dropped, the batch offset. Raises ValueError beyond the
    context.
    """
    return logits(params, features(params, tokens, config, attention, spec), config)


def features(
    params: Params,
    tokens: Int[Array, "batch tokens"],
    config: GPTConfig,
    attention: Attention = multi_head,
    spec: Spec = DEFAULT,
) -> Float[Array, "batch tokens width"]:
    """The residual stream after the last norm; arguments as in `forward`."""
    x, _ = _run(params, tokens, config, attention, spec)
    return x


def logits(
    params: Params, features: Float[Array, "*rows width"], config: GPTConfig
) -> Float[Array, "*rows vocabulary"]:
    """The logits of these features."""
    head = params["embedding.weight" if config.tied else "head.weight"]
    return tap("logits", features @ head.mT)


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
    x, new = _run(params, tokens, config, attention, DEFAULT, caches, first)
    return logits(params, x, config), [cache for cache in new if cache is not None]


def empty_caches(params: Params, config: GPTConfig, batch: int) -> list[Cache]:
    """A cache for each layer, as long as the context, in the dtype of the parameters."""
    dtype = next(iter(params.values())).dtype
    shape = (batch, config.attention.groups, config.context, config.d_k)
    return [Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers)]


def _run(
    params: Params,
    tokens: Int[Array, "batch tokens"],
    config: GPTConfig,
    attention: Attention,
    spec: Spec,
    caches: Sequence[Cache] | None = None,
    first: Position = 0,
) -> tuple[Float[Array, "batch tokens width"], list[Cache | None]]:
    if tokens.shape[-1] > config.context:
        raise ValueError(f"{tokens.shape[-1]} tokens do not fit a context of {config.context}")
    x = params["embedding.weight"][tokens]
    positions = positions_of(x, first)
    if config.positions.kind == "learned":
        x = x + params["position_embedding.weight"][positions]
    if config.positions.kind == "sinusoidal":  # as large as the embeddings are at first
        x = x + sinusoidal(positions, config.width, like=x) * (INITIAL * 2**0.5)
    spec = spec._replace(dropout=0.0 if spec.seed is None else config.dropout)
    x = tap("embedded", drop(x, fold(spec, 0)))
    new: list[Cache | None] = []
    for layer in range(config.layers):
        cache = None if caches is None else caches[layer]
        block = part(params, f"blocks.{layer}")
        with scope(f"blocks.{layer}"):
            x, cache = _block(x, block, config, attention, fold(spec, 1 + layer), cache, first)
        new.append(cache)
    return tap("final_norm", norm(x, part(params, "final_norm"), config)), new


def _block(
    x: Array,
    params: Params,
    config: GPTConfig,
    attention: Attention,
    spec: Spec,
    cache: Cache | None,
    first: Position,
) -> tuple[Array, Cache | None]:
    """x + attention(norm(x)), then x + mlp(norm(x)): norms first, as in GPT-2."""
    normalized = tap("attention_norm", norm(x, part(params, "attention_norm"), config))
    with scope("attention"):
        update, cache = attention.apply(
            normalized, part(params, "attention"), config, fold(spec, 0), cache, first
        )
    x = tap("after_attention", x + drop(update, fold(spec, 1)))
    normalized = tap("mlp_norm", norm(x, part(params, "mlp_norm"), config))
    with scope("mlp"):
        update = mlp(normalized, part(params, "mlp"), config)
    return tap("after_mlp", x + drop(update, fold(spec, 2))), cache


def _seed_of(key: Array) -> int:
    """The number that `jax.random.key` was made of."""
    high, low = np.asarray(jax.random.key_data(key), dtype=np.uint64).ravel()[-2:]
    return int(high) << 32 | int(low)
