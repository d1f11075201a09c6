"""Writing with a GPT in JAX: one token after another, each by the same compiled step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Integer

from headway import tracing
from headway.attention.arrays import Array
from headway.attention.masks import padding
from headway.attention.spec import Spec
from headway.jax import gpt
from headway.jax.gpt import Model
from headway.jax.layers import Attention, Cache, Params
from headway.models.gpt import GPTConfig
from headway.models.sampling import write

Scores = Float[Array, "batch vocabulary"]


def generate(
    model: Model, prompts: Sequence[Integer[np.ndarray, " _"]], **options: Any
) -> Iterator[list[int]]:
    """New tokens after each prompt, as `models.sampling.write` explains, with its options.

    Prompts of different lengths are written on side by side, each as it would be alone. With
    attention that can go on from a cache each token costs one position; a rung of the ladder
    reads its text anew.
    """
    return write(partial(_read, model), prompts, context=model.config.context, **options)


def _read(
    model: Model, texts: list[list[int]], caches: list[Cache] | None
) -> tuple[Scores, list[Cache] | None]:
    """The logits after each text, of which the caches hold all but the last token."""
    params, config, attention = model.params, model.config, model.attention
    if tracing.listening():  # the values seen, or changed, are then those of the texts alone
        alone = [gpt.forward(params, jnp.asarray([text]), config, attention) for text in texts]
        return jnp.concatenate([logits[:, -1] for logits in alone]), None
    lengths = np.array([len(text) for text in texts], dtype=np.int32)
    if caches is not None:
        last = np.array([[text[-1]] for text in texts], dtype=np.int32)
        return _decode(params, last, lengths - 1, caches, config=config, attention=attention)
    # As few lengths as possible, since each is compiled: the powers of two.
    longest = min(1 << int(lengths.max() - 1).bit_length(), config.context)
    rows = np.array([text + [0] * (longest - len(text)) for text in texts], dtype=np.int32)
    if not model.can_cache:
        return _whole(params, rows, lengths, config=config, attention=attention), None
    return _prefill(params, rows, lengths, config=config, attention=attention)


Static = partial(jax.jit, static_argnames=("config", "attention"))


@Static
def _whole(
    params: Params,
    rows: Int[Array, "batch tokens"],
    lengths: Int[Array, " batch"],
    *,
    config: GPTConfig,
    attention: Attention,
) -> Scores:
    """The logits after each row, of which so many tokens count."""
    logits = gpt.forward(params, rows, config, attention, Spec(mask=padding(lengths)))
    return _at(logits, lengths - 1)


@Static
def _prefill(
    params: Params,
    rows: Int[Array, "batch tokens"],
    lengths: Int[Array, " batch"],
    *,
    config: GPTConfig,
    attention: Attention,
) -> tuple[Scores, list[Cache]]:
    """The logits after each row, and the caches. What stands behind a row is overwritten later."""
    caches = gpt.empty_caches(params, config, len(rows))
    logits, caches = gpt.forward_cached(params, rows, config, attention, caches, first=0)
    return _at(logits, lengths - 1), caches


@partial(Static, donate_argnames="caches")
def _decode(
    params: Params,
    last: Int[Array, "batch 1"],
    position: Int[Array, " batch"],
    caches: list[Cache],
    *,
    config: GPTConfig,
    attention: Attention,
) -> tuple[Scores, list[Cache]]:
    """The logits after one more token of each row, at its own position."""
    logits, caches = gpt.forward_cached(params, last, config, attention, caches, first=position)
    return logits[:, 0], caches


def _at(logits: Array, position: Array) -> Scores:
    return logits[jnp.arange(len(logits)), position]
