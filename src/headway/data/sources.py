"""What a model can learn the next token of: a text, a corpus of documents, or files of tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from headway.data import corpora
from headway.data.batches import Tokens, prepared, split
from headway.data.corpus import Corpus
from headway.data.documents import files_of
from headway.data.files import hashed
from headway.data.token_files import TokenFiles, token_files_in
from headway.data.tokenizers import OWN, Tokenizer, digest, tokenizer_for

Show = Callable[[int, int], object]  # called with the number of new units, and of all


class Source(Protocol):
    """A text, in whatever form.

    sha256: of the content.
    """

    @property
    def sha256(self) -> str: ...

    def tokenizer(self, kind: str, vocabulary: int | None) -> Tokenizer:
        """Return a tokenizer, see `tokenizer_for`. Raises ValueError if this text cannot use it."""

    def end_token(self, tokenizer: Tokenizer) -> int | None:
        """Return the token after each document; None if the text is not divided."""

    def split(self, tokenizer: Tokenizer, context: int, show: Show) -> tuple[Tokens, Tokens, str]:
        """Return the tokens of the training data and of the held-out data, and which these are.

        Raises ValueError if either has fewer tokens than context + 1.
        """


def read(name: str) -> Source:
    """Return a text by name, or of a file or folder. Raises ValueError if it is not found."""
    tokens = token_files_in(name)
    if tokens is not None:
        return StoredTokens(tokens)
    files = files_of(name)
    return Documents(Corpus(hashed(name, files))) if files else Text(corpora.read(name))


@dataclass(frozen=True)
class Text:
    """One text, which is read at once; the last tenth is held out."""

    text: str

    @property
    def sha256(self) -> str:
        return digest(self.text)

    def tokenizer(self, kind: str, vocabulary: int | None) -> Tokenizer:
        return tokenizer_for(self.text, kind, vocabulary)

    def end_token(self, tokenizer: Tokenizer) -> None:
        return None

    def split(self, tokenizer: Tokenizer, context: int, show: Show) -> tuple[Tokens, Tokens, str]:
        tokens = prepared(self.text, tokenizer, lambda more: show(more, len(self.text)))
        return *split(tokens, context), ""


@dataclass(frozen=True)
class Documents:
    """A corpus of documents, of which some are held out; the others follow each other."""

    corpus: Corpus

    @property
    def sha256(self) -> str:
        return self.corpus.sha256

    def tokenizer(self, kind: str, vocabulary: int | None) -> Tokenizer:
        if kind not in OWN:
            return tokenizer_for("", kind, vocabulary)
        texts: dict[str, Callable[[], str]]
        texts = {"bpe": self.corpus.sample, "char": self.corpus.characters, "byte": str}
        return tokenizer_for(texts[kind](), kind, vocabulary, end=True)

    def end_token(self, tokenizer: Tokenizer) -> int:
        if tokenizer.end is None:
            raise ValueError(
                "the tokenizer has no token that ends a document: name one as eos_token in the "
                "tokenizer_config.json next to the tokenizer.json, or use --tokenizer bpe"
            )
        return tokenizer.end

    def split(self, tokenizer: Tokenizer, context: int, show: Show) -> tuple[Tokens, Tokens, str]:
        stored = self.corpus.tokens(tokenizer, self.end_token(tokenizer), show)
        train, validation, which = stored.split(context)
        return train, validation, f" ({which})"


@dataclass(frozen=True)
class StoredTokens:
    """Tokens that another program wrote, with the tokenizer that the user names."""

    files: TokenFiles

    @property
    def sha256(self) -> str:
        return self.files.sha256

    def tokenizer(self, kind: str, vocabulary: int | None) -> Tokenizer:
        if kind in OWN:
            raise ValueError(
                f"{self.files.name} holds tokens, so their tokenizer must be given: --tokenizer "
                "with the path of its tokenizer.json (meta.pkl is not read, because pickle can run "
                "code)"
            )
        return tokenizer_for("", kind, vocabulary)

    def end_token(self, tokenizer: Tokenizer) -> int | None:
        return tokenizer.end

    def split(self, tokenizer: Tokenizer, context: int, show: Show) -> tuple[Tokens, Tokens, str]:
        return *self.files.tokens(tokenizer, context), " (val)"
