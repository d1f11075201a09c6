"""From one long row of tokens to batches; every batch is a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Integer

Tokens = Integer[np.ndarray, " _"]
Windows = Int[np.ndarray, "windows context"]


def split(tokens: Tokens, context: int, held_out: float = 0.1) -> tuple[Tokens, Tokens]:
    """The first part to train on, and the last, `held_out` of the whole, to evaluate on.

    Raises ValueError when either part is shorter than one context and the token after it.
    """
    cut = len(tokens) - max(int(len(tokens) * held_out), min(context + 1, len(tokens) // 2))
    if min(cut, len(tokens) - cut) < context + 1:
        raise ValueError(
            f"the text has {len(tokens):,} tokens, too few for a context of {context}: it takes "
            f"{2 * (context + 1):,}; give more text or a smaller context"
        )
    return tokens[:cut], tokens[cut:]


def batch(
    tokens: Tokens, *, seed: int, step: int, size: int, context: int
) -> tuple[Windows, Windows]:
    """`size` random windows, and the same one token later: what to see and what to predict."""
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    starts = generator.integers(0, len(tokens) - context, size=size)
    return _windows(tokens, starts, context)


def evaluation(tokens: Tokens, context: int, most: int) -> tuple[Windows, Windows]:
    """Consecutive windows from first to last, or `most` of them evenly spread; always the same."""
    starts = np.arange(0, len(tokens) - context, context)
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
    return _windows(tokens, starts, context)


def _windows(tokens: Tokens, starts: Tokens, context: int) -> tuple[Windows, Windows]:
    windows = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return windows[:, :-1], windows[:, 1:]
