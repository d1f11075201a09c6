"""Text generation: sample the next token from logits, and repeat; independent of the engine.

A draw is the largest of logits / temperature + noise, where the noise of each token has a Gumbel
distribution, so that the token has the distribution of the softmax (Gumbel 1954; Maddison et al.
2014). The noise is a hash of the seed, the step, the prompt and the token: NumPy, PyTorch and JAX
sample the same token from the same logits, and a prompt gets the same text in any batch.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int, Integer

from headway.attention.arrays import Array, as_numpy, integers, largest, namespace, widened
from headway.attention.dropout import hashed, hashes

Caches = TypeVar("Caches")

# A function (texts, caches, step) -> (tokens, caches) that samples the next token of each text. The
# given caches contain all tokens of the texts except the last one; the returned caches contain all
# tokens. None: the function has no caches, or the texts must be read again.
NextTokens = Callable[[list[list[int]], Caches | None, int], tuple[list[int], Caches | None]]

CANDIDATES = 256  # tokens that top_p considers at first
OK, MORE_CANDIDATES, NOT_FINITE = range(3)


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled.

    Raises ValueError for a temperature below 0, a top_k below 1, a top_p outside (0, 1] and
    a seed outside [0, 2^32).

    Attributes
    ----------
    temperature
        Divides the logits; 0 always takes the most likely token.
    top_k
        Sample only from the k most likely tokens (Fan et al. 2018), and from those that are as
        likely as the last of them; by default from all.
    top_p
        Sample only from the smallest set of most likely tokens whose total probability is at least
        top_p (Holtzman et al. 2020); by default from all. With top_k: of their probability.
    seed
        The same seed gives the same text.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < inf:
            raise ValueError(f"temperature must be >= 0 (got {self.temperature})")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be >= 1 (got {self.top_k})")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be > 0 and <= 1 (got {self.top_p})")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be >= 0 and < 2^32 (got {self.seed})")


def sampled(
    logits: Float[Array, "batch vocabulary"],
    prompt_seeds: Int[Array, " batch"],
    step: int | Int[Array, ""],
    sampling: Sampling,
    candidates: int = CANDIDATES,
) -> tuple[Int[Array, " batch"], Int[Array, ""]]:
    """Return the next token of each row, and OK, MORE_CANDIDATES or NOT_FINITE for all rows.

    prompt_seeds: those of `seeds_of`. candidates: the number of most likely
    tokens that top_p considers. If they are too few, the status is MORE_CANDIDATES.
    """
    xp, logits = namespace(logits), widened(logits)
    top = xp.max(logits, axis=-1, keepdims=True)
    is_finite = xp.isfinite(top)
    status = xp.where(xp.all(is_finite), OK, NOT_FINITE)
    logits, top = (xp.where(is_finite, x, 0.0) for x in (logits, top))
    if sampling.temperature == 0:
        return xp.argmax(logits, axis=-1), status
    with np.errstate(over="ignore"):  # -inf is right
        scaled = (logits - top) / sampling.temperature
    count = min(sampling.top_k or scaled.shape[-1], scaled.shape[-1])
    if sampling.top_p is not None and sampling.top_p < 1:
        best = largest(scaled, count if sampling.top_k else min(count, candidates))
        total = xp.sum(xp.exp(best if sampling.top_k else scaled), axis=-1, keepdims=True)
        after = xp.cumulative_sum(xp.exp(best) / total, axis=-1)
        before = xp.concat([xp.zeros_like(after[:, :1]), after[:, :-1]], axis=-1)
        least = xp.min(xp.where(before < sampling.top_p, best, inf), axis=-1, keepdims=True)
        scaled = xp.where(scaled < least, -inf, scaled)
        is_short = xp.any(after[:, -1] < sampling.top_p) & (best.shape[-1] < count)
        status = xp.where(is_short & (status == OK), MORE_CANDIDATES, status)
    elif count < scaled.shape[-1]:
        scaled = xp.where(scaled < largest(scaled, count)[:, -1:], -inf, scaled)
    noise = gumbel((sampling.seed, step), prompt_seeds[:, None], integers(scaled.shape[-1], scaled))
    return xp.argmax(scaled + xp.astype(noise, scaled.dtype), axis=-1), status


def gumbel(seed: tuple[int | Array, ...], *coordinates: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return a number with a Gumbel distribution for each cell, in float32.

    It depends only on the seed and on the coordinates: int32 arrays that broadcast.
    """
    xp = namespace(coordinates[-1])
    bits = hashes(hashed(seed, coordinates[-1]), *coordinates)
    # 23 bits, so that neither 0 nor 1 results in float32.
    uniform = (xp.astype((bits >> 9) & (2**23 - 1), xp.float32) + 0.5) * 2**-23
    return -xp.log(-xp.log(uniform))


def tokens_of(
    sample: Callable[[int], tuple[Array, Array]], vocabulary: int, candidates: int = CANDIDATES
) -> list[int]:
    """Return the tokens of `sample(candidates)`, called again with all tokens if it needs more.

    Raises ValueError if the logits are not finite.
    """
    tokens, status = map(as_numpy, sample(candidates))
    if status == MORE_CANDIDATES:
        tokens, status = map(as_numpy, sample(vocabulary))
    if status == NOT_FINITE:
        raise ValueError(
            "the model's logits are not finite; its weights are damaged, or the number format is "
            "too narrow for them (see --dtype)"
        )
    numbers: list[int] = tokens.tolist()
    return numbers


def seeds_of(texts: Sequence[Sequence[int]]) -> Int[np.ndarray, " batch"]:
    """Return a number for each prompt that depends on its tokens only."""
    hashed_texts = [zlib.crc32(np.asarray(text, "<i8").tobytes()) for text in texts]
    return np.array(hashed_texts, dtype=np.uint32).view(np.int32)


def truncated(prompt: Integer[np.ndarray, " _"], context: int) -> list[int]:
    """Return the last tokens of a prompt, as many as the context holds."""
    return [int(token) for token in prompt[-context:]]


def write(
    next_tokens: NextTokens[Caches],
    prompts: Sequence[Integer[np.ndarray, " _"]],
    *,
    context: int,
    tokens: int,
) -> Iterator[list[int]]:
    """Generate `tokens` new tokens after each prompt; each step yields one token per prompt.

    When a text becomes longer than the context, only its last context // 2 tokens are kept.
    Raises ValueError for an empty prompt.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("the prompt is empty; it must have at least one character")
    texts = [truncated(prompt, context) for prompt in prompts]
    caches: Caches | None = None
    for step in range(tokens):
        if max(map(len, texts)) > context:
            texts = [
                text[-(context // 2 or 1) :] if len(text) > context else text for text in texts
            ]
            caches = None
        chosen, caches = next_tokens(texts, caches, step)
        yield chosen
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
