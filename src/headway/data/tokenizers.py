"""Text to numbers and back: characters, bytes, byte-level pairs, or any tokenizer.json."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Int, Integer
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

# GPT-2's alphabet: a byte that prints stands for itself, the others for characters from 256 on.
_PRINTED = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
_HIDDEN = [b for b in range(256) if b not in _PRINTED]
BYTES = {chr(b): b for b in _PRINTED} | {chr(256 + n): b for n, b in enumerate(_HIDDEN)}

# The end of a single line, at which every tokenizer with words cuts too.
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_PIECE = 1 << 16  # characters


@final
class Tokenizer:
    """A tokenizer of the `tokenizers` library, as arrays.

    Decoding what `characters`, `utf8_bytes` and `byte_pairs` encoded gives back the exact text.
    """

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
    def utf8_bytes(cls) -> Tokenizer:
        """One token a byte of UTF-8, its number the byte's."""
        return cls(_byte_level(models.BPE(vocab=BYTES, merges=[])))

    @classmethod
    def byte_pairs(cls, text: str, vocabulary: int) -> Tokenizer:
        """The 256 bytes and the pairs that `text` has most often (Sennrich et al. 2016; GPT-2).

        vocabulary: how many tokens, at most. Raises ValueError for fewer than 256.
        """
        if vocabulary < 256:
            raise ValueError(
                f"byte pairs start from 256 bytes: a vocabulary of {vocabulary} is short"
            )
        backend = _byte_level(models.BPE())
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
        except OSError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{path} holds no tokenizer: {error}") from error

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    @property
    def vocabulary(self) -> int:
        """One more than the largest number of a token."""
        return 1 + max(self._backend.get_vocab().values(), default=-1)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of what it is."""
        return digest(self._backend.to_str())

    def encode(self, text: str) -> Int[np.ndarray, " tokens"]:
        """The tokens of a text, int64.

        Raises ValueError for a character that it never saw and for half a surrogate pair.
        """
        pieces = [piece for piece, _ in self.encode_pieces(text)]
        return np.concatenate(pieces or [np.empty(0, np.int64)])

    def encode_pieces(self, text: str) -> Iterator[tuple[Int[np.ndarray, " tokens"], int]]:
        """The tokens piece by piece, each with the number of its characters.

        A piece ends where a line does, so that the pieces of a long text, encoded side by side,
        are what the whole would be.
        """
        if any("\ud800" <= character <= "\udfff" for character in set(text)):
            raise ValueError("the text is no valid Unicode: it holds half a surrogate pair")
        if self._known is not None:
            strange = sorted(set(text) - self._known)
            if strange:
                said = ", ".join(f"{character!r}" for character in strange[:5])
                raise ValueError(f"the tokenizer never saw {said}: leave it out of the text")
        cut = _cut(text)
        while pieces := list(islice(cut, 16)):
            found = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
            for piece, encoding in zip(pieces, found, strict=True):
                yield np.array(encoding.ids, dtype=np.int64), len(piece)

    def decode(self, tokens: Sequence[int] | Integer[np.ndarray, " tokens"]) -> str:
        """The text of tokens; bytes that are no character yet appear as U+FFFD."""
        return self._backend.decode(list(map(int, tokens)), skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for: of a byte-level tokenizer its bytes, else its text as UTF-8.

        Raises ValueError for a number that is no token.
        """
        name = self._backend.id_to_token(token)
        if name is None:
            raise ValueError(f"there is no token {token}")
        if isinstance(self._backend.decoder, decoders.ByteLevel) and set(name) <= set(BYTES):
            return bytes(BYTES[character] for character in name)
        return self.decode([token]).encode()

    def stream(self, stop: Iterable[str] = ()) -> TextStream:
        """Text from tokens as they come; see `TextStream`."""
        return TextStream(self._backend, stop)


@final
class TextStream:
    """Text from tokens as they come: whole characters, and nothing of a stop string.

    `ended` turns true when a stop string was met; the text before it has then been given.
    Raises ValueError for an empty stop string.
    """

    def __init__(self, backend: Backend, stop: Iterable[str] = ()) -> None:
        self._backend = backend
        self._decoder = decoders.DecodeStream(skip_special_tokens=False)
        self._stop = tuple(stop)
        if "" in self._stop:
            raise ValueError("a stop string is empty: give at least one character")
        self._held = ""  # what may be the beginning of a stop string
        self.ended = False

    def add(self, token: int) -> str:
        """The text that is certain now, often "" while a character or a stop string is open."""
        if self.ended:
            return ""
        text = self._held + (self._decoder.step(self._backend, token) or "")
        ends = [place for place in map(text.find, self._stop) if place >= 0]
        if ends:
            self.ended, self._held = True, ""
            return text[: min(ends)]
        # The longest end of the text with which a stop string begins.
        hold = max(
            (n for s in self._stop for n in range(len(s)) if text.endswith(s[:n])), default=0
        )
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        held, self._held = self._held, ""
        return held


def digest(text: str) -> str:
    """The SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _byte_level(model: models.Model) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _is_word_level(backend: Backend) -> bool:
    return isinstance(backend.model, models.WordLevel)


def _cut(text: str) -> Iterator[str]:
    start = 0
    for end in _LINE_END.finditer(text):
        if end.end() - start >= _PIECE:
            yield text[start : end.end()]
            start = end.end()
    if start < len(text):
        yield text[start:]
