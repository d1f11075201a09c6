"""Text generation with a GPT in PyTorch, one token at a time, from a cache."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from headway import tracing
from headway.models.sampling import Caches, NextTokens, Sampling, seeds_of, truncated, write
from headway.torch.decode import Decoder, LastTokens, drawn, is_supported
from headway.torch.gpt import GPT
from headway.torch.layers import Cache

# On a CPU, compiled code saves 0.1 ms per token and layer, and 0.14 ms per token and million
# parameters, because it reads them faster than PyTorch's matrix products do (on an AMD processor);
# this is so for one text in float32, and not for several or in 16 bits. Compiling takes about 20 s;
# to look for the code in the cache folder takes about 50 ms. Each of the two is done if it saves
# more seconds than this:
COMPILES_FROM = 20.0
LOADS_FROM = 0.06
SAVED_PER_LAYER, SAVED_PER_PARAMETER = 1e-4, 1.4e-10

# With more parameters, a step takes much longer to read them than Python takes. With fewer, waking
# up a second thread takes longer than its share of the work.
SMALL = 8_000_000


def generate(
    model: GPT, prompts: Sequence[Integer[np.ndarray, " _"]], *, tokens: int, **options: Any
) -> Iterator[list[int]]:
    """Generate new tokens after each prompt; options: those of `models.sampling.Sampling`.

    Prompts of different lengths form one batch, and each gets the same continuation as it would
    alone, except with the scaling `dynamic`, whose angles depend on the longest prompt. With a
    cache, each step processes only the last token; a rung of the ladder has no cache and processes
    the complete text again for every token.
    """
    model.eval()
    context, device = model.config.context, next(model.parameters()).device
    texts, sampling = [truncated(prompt, context) for prompt in prompts], Sampling(**options)
    prompt_seeds = torch.from_numpy(seeds_of(texts)).to(device)
    capacity = min(max(map(len, texts), default=1) + tokens, context)
    last_tokens = _last_tokens(model, [*map(len, texts)], tokens, device)
    next_tokens = partial(_next_tokens, model, sampling, prompt_seeds, capacity, last_tokens)
    if device.type == "cpu" and _size(model) < SMALL:
        next_tokens = partial(_with_one_thread, next_tokens)
    return write(next_tokens, prompts, context=context, tokens=tokens)


def _last_tokens(
    model: GPT, lengths: Sequence[int], tokens: int, device: torch.device
) -> Callable[..., Tensor] | None:
    """Return the function for a `Decoder` on CUDA, or with compiled code; otherwise None."""
    if not model.can_cache or not is_supported(model):
        return None
    if device.type == "cuda":
        return LastTokens(model)
    saved = tokens * (SAVED_PER_LAYER * len(model.blocks) + SAVED_PER_PARAMETER * _size(model))
    is_fast = next(model.parameters()).dtype == torch.float32 and len(lengths) == 1
    if device.type != "cpu" or not is_fast or saved < LOADS_FROM:
        return None
    if 0 in lengths or tracing.listening():
        return None
    return LastTokens(model).compiled(may_compile=saved >= COMPILES_FROM)


def _size(model: GPT) -> int:
    return sum(p.numel() for p in model.parameters())


def _with_one_thread(
    next_tokens: NextTokens[Caches], texts: list[list[int]], caches: Caches | None, step: int
) -> tuple[list[int], Caches | None]:
    """Sample the next token of each text; with one thread, unless the texts must be read."""
    threads = torch.get_num_threads()
    if caches is not None:
        torch.set_num_threads(1)
    try:
        return next_tokens(texts, caches, step)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _next_tokens(
    model: GPT,
    sampling: Sampling,
    prompt_seeds: Int[Tensor, " batch"],
    capacity: int,
    last_tokens: Callable[..., Tensor] | None,
    texts: list[list[int]],
    caches: list[Cache] | Decoder | None,
    step: int,
) -> tuple[list[int], list[Cache] | Decoder | None]:
    """Sample the next token of each text; the caches hold all tokens except the last one.

    With last_tokens, the caches of all steps after the first are those of a `Decoder`. capacity:
    the maximum number of tokens of new caches.
    """
    device, starts = prompt_seeds.device, None
    if isinstance(caches, Decoder) and tracing.listening():
        caches = None  # a graph has no steps to trace: read the text again
    if isinstance(caches, Decoder):
        return caches.next_tokens(step, [text[-1] for text in texts]), caches
    if caches is not None:
        rows = [text[-1:] for text in texts]
    else:  # pad on the left to one length
        longest = max(map(len, texts))
        gaps = [longest - len(text) for text in texts]
        rows = [[0] * gap + text for gap, text in zip(gaps, texts, strict=True)]
        starts = torch.tensor(gaps, device=device) if any(gaps) else None
        caches = model.caches(capacity, starts) if model.can_cache else None
        if caches is not None:
            starts = None  # the caches have it
    logits = model(torch.tensor(rows, device=device), caches=caches, starts=starts)[:, -1]
    tokens = drawn(logits, prompt_seeds, step, sampling)
    if caches is None or last_tokens is None or tracing.listening():
        return tokens, caches
    return tokens, Decoder(last_tokens, caches, prompt_seeds, sampling)
