"""Text generation with a GPT in JAX: one compiled step is reused for every token."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Integer

from headway import tracing
from headway.attention.arrays import Array, as_numpy
from headway.attention.masks import padding
from headway.attention.spec import Spec
from headway.jax import gpt
from headway.jax.gpt import Model
from headway.jax.layers import Attention, Cache, Params
from headway.models.gpt import GPTConfig
from headway.models.sampling import Sampling, sampled, seeds_of, tokens_of, truncated, write

Scores = Float[Array, "batch vocabulary"]

CAPACITY = 256  # minimum tokens of a cache; each capacity is compiled separately


def generate(
    model: Model, prompts: Sequence[Integer[np.ndarray, " _"]], *, tokens: int, **options: Any
) -> Iterator[list[int]]:
    """Generate new tokens after each prompt; options: those of `models.sampling.Sampling`.

    Prompts of different lengths form one batch, and each gets the same continuation as it would
    alone, except with the scaling `dynamic`, whose angles depend on the longest prompt. With a
    cache, each step processes only the last token; a rung of the ladder has no cache and processes
    the complete text again for every token.
    """
    context = model.config.context
    longest = max((len(prompt) for prompt in prompts), default=1) + tokens
    capacity = min(max(_power_of_two(longest), CAPACITY), context)
    prompt_seeds = seeds_of([truncated(prompt, context) for prompt in prompts])
    next_tokens = partial(_next_tokens, model, Sampling(**options), prompt_seeds, capacity)
    return write(next_tokens, prompts, context=context, tokens=tokens)


def _next_tokens(
    model: Model,
    sampling: Sampling,
    prompt_seeds: Int[np.ndarray, " batch"],
    capacity: int,
    texts: list[list[int]],
    caches: list[Cache] | None,
    step: int,
) -> tuple[list[int], list[Cache] | None]:
    """Sample the next token of each text; the caches hold all tokens except the last one.

    capacity: the maximum number of tokens of new caches.
    """
    logits, caches = _read(model, capacity, texts, caches)
    if all(device.platform == "cpu" for device in logits.devices()):
        # NumPy is faster, and nothing needs to be compiled.
        draw = partial(sampled, as_numpy(logits), prompt_seeds, step, sampling)
        return tokens_of(draw, logits.shape[-1]), caches

    def sample(candidates: int) -> tuple[Array, Array]:
        return _sampled(
            logits, prompt_seeds, np.int32(step), sampling=sampling, candidates=candidates
        )

    return tokens_of(sample, logits.shape[-1]), caches


_sampled = jax.jit(sampled, static_argnums=(3, 4))


def _read(
    model: Model, capacity: int, texts: list[list[int]], caches: list[Cache] | None
) -> tuple[Scores, list[Cache] | None]:
    """Return the logits after each text; the caches hold all tokens except the last one."""
    params, config, attention = model.params, model.config, model.attention
    if tracing.listening():  # traces and edits must not see the padding
        unpadded = [gpt.forward(params, jnp.asarray([text]), config, attention) for text in texts]
        return jnp.concatenate([logits[:, -1] for logits in unpadded]), None
    lengths = np.array([len(text) for text in texts], dtype=np.int32)
    if caches is not None:
        last = np.array([[text[-1]] for text in texts], dtype=np.int32)
        return _decode(params, last, lengths - 1, caches, config=config, attention=attention)
    longest = int(lengths.max())
    if config.positions.rotary.scaling != "dynamic":  # its angles depend on the length
        # Each length is compiled separately, so only powers of two are used.
        longest = min(_power_of_two(longest), capacity)
    rows = np.array([text + [0] * (longest - len(text)) for text in texts], dtype=np.int32)
    room = capacity if model.can_cache else None
    return _prefill(params, rows, lengths, config=config, attention=attention, capacity=room)


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least this number."""
    return 1 << (number - 1).bit_length()


@partial(jax.jit, static_argnames=("config", "attention", "capacity"))
def _prefill(
    params: Params,
    rows: Int[Array, "batch tokens"],
    lengths: Int[Array, " batch"],
    *,
    config: GPTConfig,
    attention: Attention,
    capacity: int | None,
) -> tuple[Scores, list[Cache] | None]:
    """Return the logits after the last token of each row, and the caches, if any.

    lengths: without the padding, which stays in the caches until decoding overwrites it.
    capacity: of the caches; None if there are none.
    """
    caches = None
    if capacity is not None:
        empty = gpt.empty_caches(params, config, len(rows), capacity)
        logits, caches = gpt.forward_cached(params, rows, config, attention, empty, first=0)
    else:
        logits = gpt.forward(params, rows, config, attention, Spec(mask=padding(lengths)))
    return logits[jnp.arange(len(rows)), lengths - 1], caches


@partial(jax.jit, static_argnames=("config", "attention"), donate_argnames="caches")
def _decode(
    params: Params,
    last: Int[Array, "batch 1"],
    position: Int[Array, " batch"],
    caches: list[Cache],
    *,
    config: GPTConfig,
    attention: Attention,
) -> tuple[Scores, list[Cache]]:
    """Return the logits after one more token per row, each at its own position."""
    logits, caches = gpt.forward_cached(params, last, config, attention, caches, first=position)
    return logits[:, 0], caches
