"""The text that the explorer shows when the user gives none: a sentence that makes sense."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from headway.data.batches import already_prepared, split
from headway.data.tokenizers import Tokenizer
from headway.training.runs import Run

PLAIN = "The animal did not cross the street because it was too tired."
MASKED = "The animal did not cross the {mask} because it was too tired."
WORDS, TOKENS = (5, 15), 60  # of a sentence of the corpus: the range, the maximum
READ = 50_000  # tokens of the corpus in which a sentence is looked for

# A sentence of letters in one paragraph, after the end of another sentence or of a heading.
_SENTENCE = re.compile(r"(?<=[.!?:]\s|\n\n)[^\W\d_](?:[^\W\d_]|[ ,;'’-]|\n(?!\s*\n))*\.(?=\s)")


def sentence(run: Run, tokenizer: Tokenizer, context: int) -> str | None:
    """Return the longest sentence that fits, of the held-out part of a run's training text.

    The tokens of the text are in Headway's cache under its SHA-256: the text itself may be moved,
    and nothing is downloaded. Returns None if they are not there, or no sentence fits.
    """
    config = run.config
    tokens = already_prepared(config.text_sha256, tokenizer)
    if tokens is None:
        return None
    _, held_out = split(tokens, config.window)
    sentences = _sentences(held_out[:READ], tokenizer, context)
    return max(sentences, key=lambda text: len(text.split()), default=None)


def plain(tokenizer: Tokenizer, context: int, encode: Callable[[str], np.ndarray]) -> str | None:
    """Return a fixed English sentence, with a masked word for a tokenizer with a mask, or None if
    the tokenizer does not know one of its characters or words, or it does not fit the context.

    encode: as the model reads a text.
    """
    text = PLAIN
    if tokenizer.mask is not None:
        text = MASKED.format(mask=tokenizer.name(tokenizer.mask))
    try:
        tokens = tokenizer.encode(text)
    except ValueError:
        return None
    fits = len(encode(text)) <= context
    return text if fits and _letters(tokenizer.decode(tokens)) == _letters(text) else None


def _sentences(tokens: np.ndarray, tokenizer: Tokenizer, context: int) -> Iterator[str]:
    for match in _SENTENCE.finditer(tokenizer.decode(tokens)):
        words = match[0].split()
        text, last = " ".join(words), words[-1].rstrip(".")
        # A last word of one letter or with a capital one may be an abbreviation, such as "Mr."
        ends = len(last) > 1 and last == last.lower()
        readable = text[0] == text[0].upper() and ends and WORDS[0] <= len(words) <= WORDS[1]
        if readable and len(tokenizer.prompt(text)) <= min(TOKENS, context):
            yield text


def _letters(text: str) -> str:
    """A text without what tokenizers change: spaces, and the case of letters."""
    return "".join(text.split()).lower()
