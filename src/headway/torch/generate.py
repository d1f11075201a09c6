"""Writing with a GPT in PyTorch: one token after another, from a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from headway.models.sampling import sample
from headway.torch.gpt import GPT
from headway.torch.layers import Cache


def generate(
    model: GPT,
    prompts: Sequence[Integer[np.ndarray, " _"]],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Iterator[list[int]]:
    """`tokens` new tokens after each prompt, one of each prompt at a time.

    Prompts of different lengths are written on side by side, each as it would be alone. With
    attention that can go on from a cache each token costs one position; a rung of the ladder
    reads its text anew. A text as long as the context forgets its earlier half.
    Raises ValueError for an empty prompt and for settings that `sample` refuses.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("the prompt is empty: give at least one character")
    model.eval()
    context = model.config.context
    texts = [[int(token) for token in prompt[-context:]] for prompt in prompts]
    caches: list[Cache] | None = None
    for step in range(tokens):
        if max(map(len, texts)) > context:
            texts = [
                text[-(context // 2 or 1) :] if len(text) > context else text for text in texts
            ]
            caches = None
        if caches is None:
            caches, starts, unread = _begin(model, texts)
        with torch.no_grad():
            logits = model(unread, caches=caches, starts=starts)[:, -1].float().numpy(force=True)
        chosen = [
            sample(row, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, step=step)
            for row in logits
        ]
        yield chosen
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
        if caches is not None:
            unread = torch.tensor(chosen, device=unread.device)[:, None]


def _begin(model: GPT, texts: list[list[int]]) -> tuple[list[Cache] | None, Tensor | None, Tensor]:
    """Empty caches, where each row begins, and the rows, padded at their left to one length."""
    device = next(model.parameters()).device
    longest = max(map(len, texts))
    missing = [longest - len(text) for text in texts]
    rows = [[0] * gap + text for gap, text in zip(missing, texts, strict=True)]
    starts = torch.tensor(missing, device=device) if any(missing) else None
    caches = model.caches() if model.can_cache else None
    return caches, starts, torch.tensor(rows, device=device)
