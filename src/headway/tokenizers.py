"""Text to numbers and back: characters, or byte-level pairs. One file format: tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Int
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend


@final
class Tokenizer:
    """A tokenizer of the `tokenizers` library, as arrays. Decoding gives back the exact text."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        # A word-level model stops at what it never saw; byte-level pairs have seen every byte.
        self._known = frozenset(backend.get_vocab()) if _is_word_level(backend) else None

    @classmethod
    def characters(cls, text: str) -> Tokenizer:
        """One token a character, those of `text` and no others."""
        vocabulary = {character: i for i, character in enumerate(sorted(set(text)))}
        backend = Backend(models.WordLevel(vocabulary))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        return cls(backend)

    @classmethod
    def byte_pairs(cls, text: str, vocabulary: int) -> Tokenizer:
        """The 256 bytes and the pairs that `text` has most often (Sennrich et al. 2016; GPT-2).

        vocabulary: how many tokens, at most. Raises ValueError for fewer than 256.
        """
        if vocabulary < 256:
            raise ValueError(
                f"byte pairs start from 256 bytes: a vocabulary of {vocabulary} is short"
            )
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        # Line by line, since a sequence is held whole while its words are counted.
        backend.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """A tokenizer from its tokenizer.json. Raises ValueError when it is none."""
        try:
            return cls(Backend.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{path} holds no tokenizer: {error}") from error

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> Int[np.ndarray, " tokens"]:
        """The tokens of a text, int64.

        Raises ValueError for a character that it never saw and for half a surrogate pair.
        """
        if any("\ud800" <= character <= "\udfff" for character in set(text)):
            raise ValueError("the text is no valid Unicode: it holds half a surrogate pair")
        if self._known is not None:
            strange = sorted(set(text) - self._known)
            if strange:
                said = ", ".join(f"{character!r}" for character in strange[:5])
                raise ValueError(f"the tokenizer never saw {said}: leave it out of the text")
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, tokens: Sequence[int] | Int[np.ndarray, " tokens"]) -> str:
        """The text of tokens; bytes that are no character yet appear as U+FFFD."""
        return self._backend.decode(list(map(int, tokens)), skip_special_tokens=False)


def _is_word_level(backend: Backend) -> bool:
    return isinstance(backend.model, models.WordLevel)
