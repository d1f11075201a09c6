"""Text generation with a GPT in PyTorch, one token at a time, from a cache."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from headway import tracing
from headway.models.sampling import Sampling, sampled, seeds_of, tokens_of, truncated, write
from headway.torch.decode import Decoder, is_supported
from headway.torch.gpt import GPT
from headway.torch.layers import Cache

FIXED = {"cuda"}  # devices on which every step has the same shapes


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
    longest = max((len(prompt) for prompt in prompts), default=1) + tokens
    prompt_seeds = seeds_of([truncated(prompt, context) for prompt in prompts])
    next_tokens = partial(
        _next_tokens,
        model,
        Sampling(**options),
        torch.from_numpy(prompt_seeds).to(device),
        min(longest, context),
    )
    return write(next_tokens, prompts, context=context, tokens=tokens)


@torch.no_grad()
def _next_tokens(
    model: GPT,
    sampling: Sampling,
    prompt_seeds: Int[Tensor, " batch"],
    capacity: int,
    texts: list[list[int]],
    caches: list[Cache] | Decoder | None,
    step: int,
) -> tuple[list[int], list[Cache] | Decoder | None]:
    """Sample the next token of each text; the caches hold all tokens except the last one.

    On CUDA, the caches of all steps after the first are those of a `Decoder`. capacity: the maximum
    number of tokens of new caches.
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
    tokens = tokens_of(partial(sampled, logits, prompt_seeds, step, sampling), logits.shape[-1])
    if caches is None or device.type not in FIXED or tracing.listening() or not is_supported(model):
        return tokens, caches
    return tokens, Decoder(model, caches, prompt_seeds, sampling)
