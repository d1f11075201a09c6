"""Text generation with a GPT in PyTorch, one token at a time, from a cache."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from headway.models.sampling import write
from headway.torch.gpt import GPT
from headway.torch.layers import Cache


def generate(
    model: GPT, prompts: Sequence[Integer[np.ndarray, " _"]], **options: Any
) -> Iterator[list[int]]:
    """Generate new tokens after each prompt; options: those of `models.sampling.write`.

    Prompts of different lengths form one batch, and each gets the same continuation as it would
    alone, except with the scaling `dynamic`, whose angles depend on the longest prompt. With a
    cache, each step processes only the last token; a rung of the ladder has no cache and processes
    the complete text again for every token.
    """
    model.eval()
    context = model.config.context
    longest = max((len(prompt) for prompt in prompts), default=1) + options["tokens"]
    return write(partial(_read, model, min(longest, context)), prompts, context=context, **options)


def _read(
    model: GPT, capacity: int, texts: list[list[int]], caches: list[Cache] | None
) -> tuple[Float[Tensor, "batch vocabulary"], list[Cache] | None]:
    """Return the logits after each text; the caches hold all tokens except the last one.

    capacity: the number of tokens for which new caches have room.
    """
    device, starts = next(model.parameters()).device, None
    if caches is not None:
        rows = [text[-1:] for text in texts]
    else:  # pad on the left to one length
        longest = max(map(len, texts))
        gaps = [longest - len(text) for text in texts]
        rows = [[0] * gap + text for gap, text in zip(gaps, texts, strict=True)]
        starts = torch.tensor(gaps, device=device) if any(gaps) else None
        caches = model.caches(capacity, starts) if model.can_cache else None
    with torch.no_grad():
        logits = model(torch.tensor(rows, device=device), caches=caches, starts=starts)
    return logits[:, -1], caches
