"""A text's tokens on disk: made once, then mapped into memory whenever they are wanted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Integer

from headway import cache
from headway.data.tokenizers import Tokenizer, digest


def prepared(
    text: str, tokenizer: Tokenizer, show: Callable[[int], object] = lambda characters: None
) -> Integer[np.ndarray, " tokens"]:
    """The tokens of a text, uint16 or uint32, mapped from a file in the cache and read-only.

    show: told how many characters more are done, while they are made.
    Raises ValueError for a text that the tokenizer cannot encode.
    """
    kind = np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32
    name = digest(digest(text) + tokenizer.fingerprint)
    file = cache.folder("tokens") / f"{name}.npy"
    if not file.exists():
        with cache.whole(file) as aside, aside.open("wb") as out:
            pieces = []
            for piece, characters in tokenizer.encode_pieces(text):
                pieces.append(piece.astype(kind))
                show(characters)
            np.save(out, np.concatenate(pieces or [np.empty(0, kind)]))
    tokens: Integer[np.ndarray, " tokens"] = np.load(file, mmap_mode="r")
    return tokens
