"""Writing with a GPT in PyTorch: one token after another, from a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from headway.models.sampling import write
from headway.torch.gpt import GPT
from headway.torch.layers import Cache


def generate(
    model: GPT, prompts: Sequence[Integer[np.ndarray, " _"]], **options: Any
) -> Iterator[list[int]]:
    """New tokens after each prompt, as `models.sampling.write` explains, with its options.

    Prompts of different lengths are written on side by side, each as it would be alone. With
    attention that can go on from a cache each token costs one position; a rung of the ladder
    reads its text anew.
    """
    model.eval()
    return write(partial(_read, model), prompts, context=model.config.context, **options)


class _Caches(NamedTuple):
    """Of each layer; and where each row begins, where they do not begin together."""

    layers: list[Cache]
    starts: Int[Tensor, " batch"] | None


def _read(
    model: GPT, texts: list[list[int]], caches: _Caches | None
) -> tuple[Float[Tensor, "batch vocabulary"], _Caches | None]:
    """The logits after each text, of which the caches hold all but the last token."""
    device = next(model.parameters()).device
    if caches is not None:
        rows, starts = [text[-1:] for text in texts], caches.starts
    else:  # padded at their left to one length
        longest = max(map(len, texts))
        missing = [longest - len(text) for text in texts]
        rows = [[0] * gap + text for gap, text in zip(missing, texts, strict=True)]
        starts = torch.tensor(missing, device=device) if any(missing) else None
        caches = _Caches(model.caches(), starts) if model.can_cache else None
    layers = None if caches is None else caches.layers
    with torch.no_grad():
        logits = model(torch.tensor(rows, device=device), caches=layers, starts=starts)
    return logits[:, -1], caches
