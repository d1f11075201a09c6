"""Tokens of a text, and batches of them, each a pure function of (seed, step)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer

from headway import cache
from headway.data.shards import Shards
from headway.data.tokenizers import Tokenizer, digest

Array = Integer[np.ndarray, " _"]
Tokens = Array | Shards
Indices = Int[np.ndarray, " windows"]
Windows = Int[np.ndarray, "windows context"]

ALL = slice(None)

# Increase it when a tokenizer's tokens of a text change, so that cached tokens are not used.
_VERSION = 2


def prepared(
    text: str, tokenizer: Tokenizer, show: Callable[[int], object] = lambda characters: None
) -> Array:
    """Return the tokens of a text, uint16 or uint32: a read-only memory map of a cached file.

    show: called with the number of characters encoded since the last call.
    Raises ValueError for a text that the tokenizer cannot encode.
    """
    kind = np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32
    file = _cached(digest(text), tokenizer)
    if not file.exists():
        with cache.atomic(file) as temporary, temporary.open("wb") as out:
            pieces = []
            for piece, characters in tokenizer.encode_pieces(text):
                pieces.append(piece.astype(kind))
                show(characters)
            np.save(out, np.concatenate(pieces or [np.empty(0, kind)]))
    tokens: Array = np.load(file, mmap_mode="r")
    return tokens


def already_prepared(text_sha256: str, tokenizer: Tokenizer) -> Array | None:
    """Return what `prepared` returned for a text with this SHA-256, if it is still in the cache."""
    file = _cached(text_sha256, tokenizer)
    tokens: Array | None = np.load(file, mmap_mode="r") if file.exists() else None
    return tokens


def _cached(text_sha256: str, tokenizer: Tokenizer) -> Path:
    name = digest(f"{_VERSION} {text_sha256} {tokenizer.fingerprint}")
    return cache.writable("tokens", f"{name}.npy")


def split(tokens: Array, context: int, held_out: float = 0.1) -> tuple[Array, Array]:
    """Split tokens into training data and validation data: the last fraction `held_out`.

    Raises ValueError if either part has fewer tokens than context + 1.
    """
    cut = where_to_cut(len(tokens), context, held_out)
    return tokens[:cut], tokens[cut:]


def where_to_cut(count: int, context: int, held_out: float = 0.1) -> int:
    """Return the number of training tokens of a text with `count` tokens; see `split`."""
    cut = count - max(int(count * held_out), min(context + 1, count // 2))
    if min(cut, count - cut) < context + 1:
        raise ValueError(
            f"the text has {count:,} tokens, too few for a context of {context}, which needs "
            f"{2 * (context + 1):,}; give more text or a smaller context"
        )
    return cut


def batch(
    tokens: Tokens, *, seed: int, step: int, size: int, context: int, rows: slice = ALL
) -> tuple[Windows, Windows]:
    """Return `size` random windows (inputs) and the same windows one token later (targets).

    rows: return only these of them.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    starts = generator.integers(0, len(tokens) - context, size=size)
    return _windows(tokens, starts[rows], context)


def evaluation(tokens: Tokens, context: int, most: int) -> tuple[Windows, Windows]:
    """Return consecutive windows, or `most` evenly spaced ones, and their targets."""
    starts = np.arange(0, len(tokens) - context, context)
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
    return _windows(tokens, starts, context)


def _windows(tokens: Tokens, starts: Indices, context: int) -> tuple[Windows, Windows]:
    windows = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return windows[:, :-1], windows[:, 1:]
