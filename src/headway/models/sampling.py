"""Writing: the next token from its logits, and one after another; no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Integer

from headway.attention.arrays import Array, as_numpy

Caches = TypeVar("Caches")

# From texts, and the caches of all but their last tokens if there are any, to the logits after each
# text (batch, vocabulary) and the caches with the last ones in them.
Read = Callable[[list[list[int]], Caches | None], tuple[Array, Caches | None]]


def sample(
    logits: Float[np.ndarray, " vocabulary"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    step: int = 0,
) -> int:
    """The next token, a function of (logits, seed, step).

    temperature: 0 takes the likeliest, below 1 prefers it more, above 1 less.
    top_k: only the k likeliest (Fan et al. 2018); all of them by default.
    top_p: of these only the likeliest that together have this share of the probability
        (Holtzman et al. 2020); the one with which the share is reached is among them.
    Raises ValueError for a temperature below 0, a top_k below 1 and a top_p outside (0, 1].
    """
    if temperature < 0:
        raise ValueError(f"a temperature is 0 or more: {temperature} is not")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is 1 or more: {top_k} is not")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is a share above 0, up to 1: {top_p} is not")
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # next to 0 a temperature leaves the likeliest alone
        scaled = (logits.astype(np.float64) - logits.max()) / temperature
    order = np.argsort(-scaled, kind="stable")
    if top_k is not None:
        scaled[order[top_k:]] = -np.inf
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if top_p is not None:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= top_p]] = 0.0
        probabilities /= probabilities.sum()
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return int(generator.choice(len(scaled), p=probabilities))


def write(
    read: Read[Caches],
    prompts: Sequence[Integer[np.ndarray, " _"]],
    *,
    context: int,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Iterator[list[int]]:
    """`tokens` new tokens after each prompt, one of each prompt at a time, whatever reads them.

    A text as long as the context forgets its earlier half.
    Raises ValueError for an empty prompt and for settings that `sample` refuses.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("the prompt is empty: give at least one character")
    texts = [[int(token) for token in prompt[-context:]] for prompt in prompts]
    caches: Caches | None = None
    for step in range(tokens):
        if max(map(len, texts)) > context:
            texts = [
                text[-(context // 2 or 1) :] if len(text) > context else text for text in texts
            ]
            caches = None
        logits, caches = read(texts, caches)
        chosen = [
            sample(row, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, step=step)
            for row in as_numpy(logits)
        ]
        yield chosen
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
