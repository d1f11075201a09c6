"""The loss of a model on a text, comparable between models with different tokenizers."""

from collections.abc import Callable
from math import exp, inf, log
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from headway.data.tokenizers import Tokenizer
from headway.training.session import Engine

_BATCH = 8  # windows that are processed at once


class Evaluation(NamedTuple):
    """The result: the number of predicted tokens and of their bytes, and their total loss in nats.

    context, stride: the size of the windows, and the distance between two of them, in tokens.
    """

    tokens: int
    size: int
    nats: float
    context: int
    stride: int

    @property
    def loss(self) -> float:
        """The mean loss in nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return exp(self.loss) if self.loss < 700 else inf

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte of the text, which does not depend on the tokenizer."""
        return self.nats / log(2) / self.size


def evaluate(
    engine: Engine,
    model: Any,
    tokenizer: Tokenizer,
    text: str,
    *,
    context: int,
    stride: int | None = None,
    show: Callable[[int, int], object] = lambda more, total: None,
) -> Evaluation:
    """Evaluate a model on a text with a sliding window of `context` tokens.

    Every token is predicted once, from at least context - stride tokens before it (fewer only at
    the beginning of the text). The first token is predicted only if the tokenizer puts BOS before
    a text; otherwise it is not counted. stride: by default half the context.
    show: called with the number of new predicted tokens and the total.
    Raises ValueError if the text has fewer than two tokens, and for an invalid stride.
    """
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride must be from 1 to the context, {context:,} (got {stride:,})")
    tokens, size = _tokens(tokenizer, text)
    total = len(tokens) - 1
    if total < 1:
        raise ValueError("the text is too short; it must have at least 2 tokens")
    context = min(context, total)
    # The last window ends at the end of the text, so that all windows have the same length.
    starts = np.array([*range(0, total - context, stride), total - context])
    windows = np.lib.stride_tricks.sliding_window_view(tokens, context + 1)
    nats, predicted = 0.0, 0
    for first in range(0, len(starts), _BATCH):
        batch = slice(first, first + _BATCH)
        losses = engine.losses(model, windows[starts[batch]])
        before = predicted
        for start, row in zip(starts[batch], losses, strict=True):
            nats += float(row[predicted - start :].sum())
            predicted = start + context
        show(predicted - before, total)
    return Evaluation(total, size, nats, context, stride)


def _tokens(tokenizer: Tokenizer, text: str) -> tuple[Integer[np.ndarray, " _"], int]:
    """The tokens of a text, and the number of bytes of those that are predicted."""
    tokens, size = tokenizer.prompt(text), len(text.encode("utf-8", "surrogatepass"))
    if len(tokens) and not len(tokenizer.prompt("")):  # nothing precedes the first token
        size -= len(tokenizer.token_bytes(int(tokens[0])))
    return tokens, size
