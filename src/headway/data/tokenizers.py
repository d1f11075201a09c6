"""Tokenizers: characters, bytes, byte-level BPE, or any tokenizer.json."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Int, Integer
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

# GPT-2's alphabet: a printable byte is represented by its own character, the others by the
# characters from 256 on.
_PRINTED = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
_HIDDEN = [b for b in range(256) if b not in _PRINTED]
BYTES = {chr(b): b for b in _PRINTED} | {chr(256 + n): b for n, b in enumerate(_HIDDEN)}

# A single line end; a tokenizer that splits into words splits here, too.
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_PIECE = 1 << 16  # minimum number of characters in a piece, except the last


@final
class Tokenizer:
    """A tokenizer of the library `tokenizers` that returns arrays.

    For `characters`, `utf8_bytes` and `byte_pairs`, decoding restores the exact text.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        # A word-level model cannot encode other characters; a byte-level one encodes all.
        is_word_level = isinstance(backend.model, models.WordLevel)
        self._known = frozenset(backend.get_vocab()) if is_word_level else None

    @classmethod
    def characters(cls, text: str) -> Tokenizer:
        """One token per character that occurs in `text`."""
        vocabulary = {character: i for i, character in enumerate(sorted(set(text)))}
        backend = Backend(models.WordLevel(vocabulary))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        return cls(backend)

    @classmethod
    def utf8_bytes(cls) -> Tokenizer:
        """One token per byte of UTF-8; the token is the value of the byte."""
        return cls(_byte_level(models.BPE(vocab=BYTES, merges=[])))

    @classmethod
    def byte_pairs(cls, text: str, vocabulary: int) -> Tokenizer:
        """Byte-level BPE, trained on `text` (Sennrich et al. 2016; Radford et al. 2019).

        vocabulary: the maximum number of tokens. Raises ValueError if it is below 256.
        """
        if vocabulary < 256:
            raise ValueError(f"the vocabulary of byte pairs must be >= 256 (got {vocabulary})")
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        # Train on lines, because the library keeps a complete sequence in memory while it counts.
        backend.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Load tokenizer.json. Raises ValueError if it is invalid."""
        try:
            return cls(Backend.from_str(path.read_text(encoding="utf-8")))
        except OSError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{path} is not a valid tokenizer: {error}") from error

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    @property
    def vocabulary(self) -> int:
        """The size of the vocabulary: one more than the largest token."""
        return 1 + max(self._backend.get_vocab().values(), default=-1)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the tokenizer's JSON."""
        return digest(self._backend.to_str())

    def encode(self, text: str) -> Int[np.ndarray, " tokens"]:
        """Return the tokens of a text, int64.

        Raises ValueError for characters that are not in the vocabulary and for lone surrogates.
        """
        pieces = [piece for piece, _ in self.encode_pieces(text)]
        return np.concatenate(pieces or [np.empty(0, np.int64)])

    def encode_pieces(self, text: str) -> Iterator[tuple[Int[np.ndarray, " tokens"], int]]:
        """Yield the tokens of pieces of the text, each with its number of characters.

        Pieces end at line ends, so that their tokens together are the tokens of the complete text.
        The pieces of a long text are encoded in parallel.
        """
        if any("\ud800" <= character <= "\udfff" for character in set(text)):
            raise ValueError("invalid Unicode: the text contains half of a surrogate pair")
        if self._known is not None:
            unknown = sorted(set(text) - self._known)
            if unknown:
                names = ", ".join(map(repr, unknown[:5]))
                raise ValueError(
                    f"the tokenizer does not know the characters {names}: remove these characters"
                )
        cut = _cut(text)
        while pieces := list(islice(cut, 16)):
            encodings = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
            for piece, encoding in zip(pieces, encodings, strict=True):
                yield np.array(encoding.ids, dtype=np.int64), len(piece)

    def decode(self, tokens: Sequence[int] | Integer[np.ndarray, " tokens"]) -> str:
        """Return the text of tokens; incomplete characters appear as U+FFFD."""
        return self._backend.decode(list(map(int, tokens)), skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; if the tokenizer is not byte-level, its text in UTF-8.

        Raises ValueError for an unknown token.
        """
        name = self._backend.id_to_token(token)
        if name is None:
            raise ValueError(f"token {token} is not in the vocabulary")
        if isinstance(self._backend.decoder, decoders.ByteLevel) and set(name) <= set(BYTES):
            return bytes(BYTES[character] for character in name)
        return self.decode([token]).encode()

    def stream(self, stop: Iterable[str] = ()) -> TextStream:
        """Return a `TextStream` that decodes tokens one at a time."""
        return TextStream(self._backend, stop)


@final
class TextStream:
    """A decoder that takes one token at a time and returns complete characters.

    stop: strings at which the text ends. `ended`: whether a stop string has occurred; the text
    before it has then been returned. Raises ValueError for an empty stop string.
    """

    def __init__(self, backend: Backend, stop: Iterable[str] = ()) -> None:
        self._backend = backend
        self._decoder = decoders.DecodeStream(skip_special_tokens=False)
        self._stop = tuple(stop)
        if "" in self._stop:
            raise ValueError("a stop string must have at least one character (got '')")
        self._held = ""  # possibly the beginning of a stop string
        self.ended = False

    def add(self, token: int) -> str:
        """Return the new text; "" while a character or a stop string may be incomplete."""
        if self.ended:
            return ""
        text = self._held + (self._decoder.step(self._backend, token) or "")
        ends = [start for start in map(text.find, self._stop) if start >= 0]
        if ends:
            self.ended, self._held = True, ""
            return text[: min(ends)]
        # The longest suffix of the text that is a prefix of a stop string.
        hold = max(
            (n for s in self._stop for n in range(len(s)) if text.endswith(s[:n])), default=0
        )
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def rest(self) -> str:
        """Return the text that was held back, after the last token."""
        held, self._held = self._held, ""
        return held


@lru_cache(maxsize=8)  # all runs of a lab experiment use the same one
def tokenizer_for(text: str, kind: str, vocabulary: int | None) -> Tokenizer:
    """Return a tokenizer; kind: bpe, char, byte or the path of a tokenizer.json.

    vocabulary: the number of tokens that bpe learns, by default 1,024. Raises ValueError for an
    unknown kind.
    """
    if kind == "bpe":
        return Tokenizer.byte_pairs(text, 1024 if vocabulary is None else vocabulary)
    if kind == "char":
        return Tokenizer.characters(text)
    if kind == "byte":
        return Tokenizer.utf8_bytes()
    if Path(kind).is_file():
        return Tokenizer.load(Path(kind))
    raise ValueError(
        f"unknown tokenizer {kind!r}; it must be bpe, char, byte or the path of a tokenizer.json"
    )


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _byte_level(model: models.Model) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _cut(text: str) -> Iterator[str]:
    start = 0
    for end in _LINE_END.finditer(text):
        if end.end() - start >= _PIECE:
            yield text[start : end.end()]
            start = end.end()
    if start < len(text):
        yield text[start:]
