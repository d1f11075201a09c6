"""Text generation: sample the next token from logits, and repeat; independent of the engine."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Integer

from headway.attention.arrays import Array, as_numpy

Caches = TypeVar("Caches")

# A function (texts, caches) -> (logits, caches). The given caches contain all tokens of the texts
# except the last one; None if there are no caches. The returned caches contain all tokens. The
# logits (batch, vocabulary) are those of the next token of each text.
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
    """Sample the next token; the result depends only on logits, seed and step.

    temperature: divides the logits; 0 always takes the most likely token.
    top_k: sample only from the k most likely tokens (Fan et al. 2018); default: all.
    top_p: sample only from the smallest set of most likely tokens whose total probability is at
        least top_p (Holtzman et al. 2020); default: all.
    Raises ValueError for a temperature below 0, a top_k below 1 and a top_p outside (0, 1].
    """
    if temperature < 0:
        raise ValueError(f"temperature must be >= 0 (got {temperature})")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be >= 1 (got {top_k})")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be > 0 and <= 1 (got {top_p})")
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # a temperature close to 0 gives -inf, which is correct
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
    """Generate `tokens` new tokens after each prompt; each step yields one token per prompt.

    When a text becomes longer than the context, only its last context // 2 tokens are kept.
    Raises ValueError for an empty prompt and for settings that are invalid in `sample`.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("the prompt is empty; it must have at least one character")
    texts = [[int(token) for token in prompt[-context:]] for prompt in prompts]
    caches: Caches | None = None
    for step in range(tokens):
        if max(map(len, texts)) > context:
            texts = [
                text[-(context // 2 or 1) :] if len(text) > context else text for text in texts
            ]
            caches = None
        logits, caches = read(texts, caches)
        sampled = [
            sample(row, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, step=step)
            for row in as_numpy(logits)
        ]
        yield sampled
        for text, token in zip(texts, sampled, strict=True):
            text.append(token)
