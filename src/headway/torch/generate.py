"""Writing with a GPT in PyTorch: one token after another, from a cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int

from headway.models.sampling import sample
from headway.torch.gpt import GPT


def generate(
    model: GPT,
    prompt: Int[np.ndarray, " tokens"],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """`tokens` new tokens after the prompt, one at a time.

    With attention that can go on from a cache each token costs one position; a rung of the ladder
    reads its text anew. When the context is full the earlier half of it is forgotten.
    Raises ValueError for an empty prompt and for settings that `sample` refuses.
    """
    if not len(prompt):
        raise ValueError("the prompt is empty: give at least one character")
    model.eval()
    context = model.config.context
    text = [int(token) for token in prompt[-context:]]
    caches = model.caches() if model.can_cache else None
    unread = text
    for step in range(tokens):
        if len(text) > context:
            text = text[-(context // 2 or 1) :]
            caches = model.caches() if model.can_cache else None
            unread = text
        with torch.no_grad():
            logits = model(torch.tensor([unread]), caches=caches)[0, -1]
        token = sample(
            logits.float().numpy(), temperature=temperature, top_k=top_k, seed=seed, step=step
        )
        yield token
        text.append(token)
        unread = text if caches is None else [token]
