"""Tokenizers: characters, bytes, byte-level BPE, or any tokenizer.json."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int, Integer
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

# GPT-2's alphabet: a printable byte is represented by its own character, the others by the
# characters from 256 on.
_PRINTED = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
_HIDDEN = [b for b in range(256) if b not in _PRINTED]
BYTES = {chr(b): b for b in _PRINTED} | {chr(256 + n): b for n, b in enumerate(_HIDDEN)}

# A single line end; a tokenizer that splits into words as GPT-2 does splits here, too.
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_PIECE = 1 << 16  # minimum number of characters in a piece, except the last
_CHARACTER = r"[\s\S]"  # a regular expression
_SPACES = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")|\s+')  # the spaces of a JSON text, or a string
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # the name of a byte if the decoder is ByteFallback
OWN = ("bpe", "char", "byte")  # the kinds that Headway makes from a text
END = "<|endoftext|>"  # the token of these that ends a document
_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>")  # the names of such a token in other tokenizers
_NO_TOKEN = "(no token)"  # the unknown token of a BPE that has none, so that it fails


@final
class Tokenizer:
    """A tokenizer of the library `tokenizers` that returns arrays.

    For `characters`, `utf8_bytes` and `byte_pairs`, decoding restores the exact text.

    bos: the token at the beginning of a text. eos: the tokens that end a generated text. mask: the
    token of a word that a masked model predicts. before, after: the special tokens that `prompt`
    and `with_special_tokens` put around a text.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos: int | None = None,
        eos: frozenset[int] = frozenset(),
        mask: int | None = None,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
    ) -> None:
        self.bos, self.eos, self.mask = bos, eos, mask
        self._before, self._after = np.array(before, np.int64), np.array(after, np.int64)
        self._backend = backend
        self._json = backend.to_str(pretty=True)
        if isinstance(backend.model, models.BPE) and backend.model.unk_token is None:
            backend.model.unk_token = _NO_TOKEN  # otherwise it drops unknown characters silently
        self._can_cut = _can_cut(backend)
        self._can_drop = _can_drop(backend)

    @classmethod
    def characters(cls, text: str) -> Tokenizer:
        """One token per character that occurs in `text`."""
        vocabulary = {character: i for i, character in enumerate(sorted(set(text)))}
        backend = Backend(models.WordLevel(vocabulary))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(_CHARACTER), "isolated")
        backend.decoder = decoders.Fuse()
        return cls(backend)

    @classmethod
    def utf8_bytes(cls) -> Tokenizer:
        """One token per byte of UTF-8; the token is the value of the byte."""
        return cls(_byte_level(models.BPE(vocab=BYTES, merges=[])))

    @classmethod
    def byte_pairs(cls, text: str, vocabulary: int, *, end: bool = False) -> Tokenizer:
        """Byte-level BPE, trained on `text` (Sennrich et al. 2016; Radford et al. 2019).

        vocabulary: the maximum number of tokens. end: leave one of them for `with_end`. Raises
        ValueError if there is not a token for each byte.
        """
        if vocabulary < 256 + end:
            least = 256 + end
            raise ValueError(f"the vocabulary of byte pairs must be >= {least} (got {vocabulary})")
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - end,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        # Train on lines, because the library keeps a complete sequence in memory while it counts.
        backend.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(backend)

    def with_end(self) -> Tokenizer:
        """Return the tokenizer with one more token, `END`, which begins and ends a text."""
        backend = Backend.from_str(self._json)
        backend.add_special_tokens([END])
        end = backend.token_to_id(END)
        assert end is not None
        return Tokenizer(backend, bos=end, eos=frozenset({end}))

    @classmethod
    def load(cls, path: Path, *, special: bool = True, end: int | None = None) -> Tokenizer:
        """Load tokenizer.json; truncation and padding are switched off.

        special: use the special tokens of its post-processor and those that tokenizer_config.json,
        generation_config.json and config.json of a Hugging Face folder name. A run has none,
        because its model was trained without them, except for `end`, the token between the
        documents that it was trained on. Raises ValueError if a file is invalid.
        """
        try:
            text = path.read_text(encoding="utf-8")
            backend = Backend.from_str(text)
        except OSError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{path} is not a valid tokenizer: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        try:
            tokens = _special_tokens(backend, path.parent) if special else {}
            if end is not None:
                tokens = {"bos": end, **tokens, "eos": frozenset({end, *tokens.get("eos", ())})}
        except (KeyError, TypeError) as error:
            raise ValueError(f"the special tokens of {path.parent} are invalid: {error}") from error
        tokenizer = cls(backend, **tokens)
        tokenizer._json = text  # the library rounds numbers each time it reads and writes a file
        return tokenizer

    def save(self, path: Path) -> None:
        """Write tokenizer.json; a loaded file is copied."""
        path.write_text(self._json, encoding="utf-8")

    @property
    def end(self) -> int | None:
        """The token that ends a document; None if there is none.

        Of several tokens of `eos`, it is the first: the others end the turn in a conversation.
        """
        if self.eos:
            return min(self.eos)
        known = map(self._backend.token_to_id, _ENDS)
        return next((token for token in known if token is not None), None)

    @property
    def vocabulary(self) -> int:
        """The size of the vocabulary: one more than the largest token, added tokens included."""
        return 1 + max(self._backend.get_vocab().values(), default=-1)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the tokenizer's JSON without spaces."""
        return digest(_SPACES.sub(r"\1", self._json))

    def encode(self, text: str) -> Int[np.ndarray, " tokens"]:
        """Return the tokens of a text, int64, without special tokens around it.

        The name of a special token in the text, such as "<|endoftext|>", is that token. Raises
        ValueError for lone surrogates and for a text of which a part would get no token.
        """
        pieces = [piece for piece, _ in self.encode_pieces(text)]
        return np.concatenate(pieces or [np.empty(0, np.int64)])

    def prompt(self, text: str) -> Int[np.ndarray, " tokens"]:
        """Return `encode(text)` after the special tokens that the tokenizer puts before a text."""
        return np.concatenate([self._before, self.encode(text)])

    def with_special_tokens(self, text: str) -> Int[np.ndarray, " tokens"]:
        """Return `encode(text)` with all special tokens around it, such as [CLS] and [SEP]."""
        return np.concatenate([self._before, self.encode(text), self._after])

    def encode_pieces(self, text: str) -> Iterator[tuple[Int[np.ndarray, " tokens"], int]]:
        """Yield the tokens of pieces of the text, each with its number of characters.

        The tokens of all pieces together are those of the complete text: where a cut could change
        them, there is only one piece. The pieces of a long text are encoded in parallel.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            reason = "invalid Unicode: the text contains half of a surrogate pair"
            raise ValueError(reason) from None
        backend = self._backend
        encode = backend.encode_batch if self._can_drop else backend.encode_batch_fast
        cut = _cut(text) if self._can_cut else iter([text])
        while pieces := list(islice(cut, 16)):
            try:
                encodings = encode(pieces, add_special_tokens=False)
            except Exception as error:  # the library raises bare Exceptions
                unknown = self._without_token("".join(pieces))
                if not unknown:
                    raise ValueError(f"the tokenizer cannot encode the text: {error}") from error
                raise _unknown(unknown) from error
            for piece, encoding in zip(pieces, encodings, strict=True):
                if self._can_drop and (dropped := _outside(piece, encoding.offsets)):
                    raise _unknown(dropped)
                yield np.array(encoding.ids, dtype=np.int64), len(piece)

    def _without_token(self, text: str) -> list[str]:
        """Return the words, or the characters if the model splits words, that have no token."""
        backend = self._backend
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        units = set(normal)
        if backend.pre_tokenizer and not isinstance(backend.model, models.BPE | models.Unigram):
            words = backend.pre_tokenizer.pre_tokenize_str(normal)
            units = {normal[slice(*offsets)] for _, offsets in words}

        def has_token(unit: str) -> bool:
            try:
                backend.encode(unit)
            except Exception:  # the library raises bare Exceptions
                return False
            return True

        return sorted(unit for unit in units if not has_token(unit))

    def decode(self, tokens: Sequence[int] | Integer[np.ndarray, " tokens"]) -> str:
        """Return the text of tokens; incomplete characters appear as U+FFFD."""
        return self._backend.decode(list(map(int, tokens)), skip_special_tokens=False)

    def name(self, token: int) -> str:
        """Return the name of a token in the vocabulary.

        The name of an unknown token is its number in parentheses, because the vocabulary of a model
        may be larger than that of its tokenizer.
        """
        name: str | None = self._backend.id_to_token(token)
        return f"({token})" if name is None else name

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; if the tokenizer is not byte-level, its text in UTF-8.

        The text is that of the token within a text: the space of "▁the" is part of it. An unknown
        token has its name.
        """
        name = self.name(token)
        if self._backend.id_to_token(token) is None:
            return name.encode()
        if isinstance(self._backend.decoder, decoders.ByteLevel) and set(name) <= set(BYTES):
            return bytes(BYTES[character] for character in name)
        first, two = self.decode([token]), self.decode([token, token])
        if (byte := _BYTE.fullmatch(name)) and first != name:  # the decoder turns it into a byte
            return bytes([int(byte[1], 16)])
        return two[len(first) :].encode()  # a decoder may remove the space of the first token

    def stream(
        self, stop: Iterable[str] = (), after: Sequence[int] | Integer[np.ndarray, " tokens"] = ()
    ) -> TextStream:
        """Return a `TextStream` that decodes tokens one at a time.

        after: the tokens of the prompt, so that prompt and stream together are the text of all
        tokens. BOS is no text: the first word after it has no space before it.
        """
        context = [int(token) for token in after if token != self.bos]
        return TextStream(self, stop, context)


@final
class TextStream:
    """A decoder that takes one token at a time and returns complete characters.

    stop: strings at which the text ends. after: the tokens before the first one. `ended`: whether
    a stop string or a token of `tokenizer.eos` has occurred; the text before it has then been
    returned, except for `rest`. Raises ValueError for an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str], after: Sequence[int]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        if "" in self._stop:
            raise ValueError("a stop string must have at least one character (got '')")
        # The text of a token may depend on the one before it.
        self._context, self._new = list(after), list[int]()
        self._held = ""  # possibly the beginning of a stop string
        self.ended = False

    def add(self, token: int) -> str:
        """Return the new text; "" while a character or a stop string may be incomplete."""
        if self.ended or token in self._tokenizer.eos:
            self.ended = True
            return ""
        self._new.append(token)
        new = self._new_text()
        if new.endswith("\ufffd"):
            return ""
        self._context, self._new = self._new, []
        text = self._held + new
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
        rest = self._held + self._new_text()
        self._held, self._new = "", []
        return rest

    def _new_text(self) -> str:
        decode = self._tokenizer.decode
        return decode(self._context + self._new)[len(decode(self._context)) :]


@lru_cache(maxsize=8)  # all runs of a lab experiment use the same one
def tokenizer_for(text: str, kind: str, vocabulary: int | None, *, end: bool = False) -> Tokenizer:
    """Return a tokenizer; kind: bpe, char, byte or the path of a tokenizer.json.

    vocabulary: the number of tokens that bpe learns, by default 1,024. end: whether bpe, char and
    byte have the token `END`. Raises ValueError for an unknown kind.
    """
    if kind in OWN:
        if kind == "bpe":
            size = 1024 if vocabulary is None else vocabulary
            tokenizer = Tokenizer.byte_pairs(text, size, end=end)
        else:
            tokenizer = Tokenizer.characters(text) if kind == "char" else Tokenizer.utf8_bytes()
        return tokenizer.with_end() if end else tokenizer
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


def _special_tokens(backend: Backend, folder: Path) -> dict[str, Any]:
    """Return the special tokens of a Hugging Face folder, as keyword arguments of `Tokenizer`."""
    names = ("tokenizer_config.json", "generation_config.json", "config.json")
    tokenizer_config, *configs = (_json_of(folder / name) for name in names)

    def token(kind: str) -> int | None:
        name = tokenizer_config.get(f"{kind}_token")  # a string, or the fields of an AddedToken
        name = name["content"] if isinstance(name, dict) else name
        return None if name is None else backend.token_to_id(name)

    def ids(kind: str) -> list[int]:
        for config in configs:
            value: int | list[int] | None = config.get(f"{kind}_token_id")
            if value is not None:
                return value if isinstance(value, list) else [value]
        return []

    bos, eos, mask = map(token, ("bos", "eos", "mask"))
    if bos is None:
        bos = next(iter(ids("bos")), None)
    if mask is None:
        masks = map(backend.token_to_id, ("[MASK]", "<mask>"))
        mask = next((token for token in masks if token is not None), None)
    before, after = _around(backend)
    if tokenizer_config.get("add_bos_token") and bos is not None and bos not in before:
        before = [bos, *before]
    ends = frozenset(ids("eos") or ([] if eos is None else [eos]))
    return {"bos": bos, "eos": ends, "mask": mask, "before": before, "after": after}


def _json_of(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if there is no file."""
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} must hold a JSON object (got {type(value).__name__})")
    return value


def _around(backend: Backend) -> tuple[list[int], list[int]]:
    """Return the special tokens that the post-processor puts before and after a text."""
    special = backend.encode("").ids
    if not special:
        return [], []
    # A text that has a token for certain. The mask is 1 for what the post-processor adds.
    encoding = backend.encode(backend.id_to_token(special[0]))
    start = [*encoding.special_tokens_mask, 0].index(0)
    return special[:start], special[start:]


def _can_cut(backend: Backend) -> bool:
    """Whether a text can be cut after a single line end without a change of its tokens."""
    words = backend.pre_tokenizer
    splits = isinstance(words, pre_tokenizers.ByteLevel)
    splits = splits and words.use_regex and not words.add_prefix_space
    # No token contains or absorbs the line end.
    added = backend.get_added_tokens_decoder().values()
    apart = not any(token.lstrip or token.rstrip or "\n" in token.content for token in added)
    return backend.normalizer is None and (splits or _is_characters(words)) and apart


def _is_characters(words: pre_tokenizers.PreTokenizer | None) -> bool:
    expected = pre_tokenizers.Split(Regex(_CHARACTER), "isolated")
    return words is not None and words.__getstate__() == expected.__getstate__()


def _can_drop(backend: Backend) -> bool:
    """Whether the pre-tokenizer can remove more than spaces."""
    words = backend.pre_tokenizer
    state = b"" if words is None else words.__getstate__()
    return b'"Removed"' in state or b'"CharDelimiterSplit"' in state


def _outside(text: str, spans: Iterable[tuple[int, int]]) -> list[str]:
    """Return the parts of a text that are in none of the spans, apart from white space."""
    parts, end = [], 0
    for start, stop in spans:
        parts.append(text[end:start])
        end = max(end, stop)
    return " ".join([*parts, text[end:]]).split()


def _unknown(parts: list[str]) -> ValueError:
    kind = "characters" if max(map(len, parts)) == 1 else "words"
    names = ", ".join(map(repr, list(dict.fromkeys(parts))[:5]))
    return ValueError(f"the tokenizer does not know the {kind} {names}: remove these {kind}")


def _cut(text: str) -> Iterator[str]:
    start = 0
    for end in _LINE_END.finditer(text):
        if end.end() - start >= _PIECE:
            yield text[start : end.end()]
            start = end.end()
    if start < len(text):
        yield text[start:]
