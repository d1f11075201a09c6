"""Tasks: what a run learns, and from which data.

A task reads the data, splits them and decides which model learns from them. Everything else in
training (steps, log, checkpoints, resuming, samples) is the same for all tasks. The batches and the
loss of a task depend on the engine: they are in `torch/tasks.py` and in `jax/train.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from headway.data import pairs, sources
from headway.data.pairs import FIRST
from headway.data.sources import Source
from headway.data.tokenizers import Tokenizer, digest, tokenizer_for
from headway.models.gpt import GPTConfig, preset
from headway.models.seq2seq import Seq2SeqConfig
from headway.nearest import named
from headway.training import translation
from headway.training.runs import RunConfig

# Called with the number of characters processed since the last call, and the total number.
Progress = Callable[[int, int], object]
Rows = tuple[pairs.Pair, ...]


class Examples(NamedTuple):
    """The data of a run.

    train, validation: the tokens of a text in one row or, for pairs, a list of (source, target).
    shown: the held-out data that samples start from.
    summary: one line about the sizes. note: a warning, or an empty string.
    files: texts to keep in the run directory, by file name.
    """

    train: Any
    validation: Any
    shown: Any
    summary: str
    note: str = ""
    files: Mapping[str, str] = MappingProxyType({})


class Task(Protocol):
    """A task: what a model learns, from which data."""

    def read(self, name: str) -> Any:
        """Read the data with this name. Raises ValueError if they are not found or invalid."""

    def sha256_of(self, source: Any) -> str:
        """Return the SHA-256 of the data."""

    def tokenizer(self, source: Any, kind: str, vocabulary: int | None) -> Tokenizer:
        """Return a tokenizer for the data; kind, vocabulary: see `tokenizer_for`."""

    def end_token(self, source: Any, tokenizer: Tokenizer) -> int | None:
        """Return the token after each document of the data; None if they have no documents."""

    def model(
        self, settings: Mapping[str, Any], tokenizer: Tokenizer | None
    ) -> GPTConfig | Seq2SeqConfig:
        """Return the config of a model from a recipe's table [model].

        Raises ValueError for invalid settings. Without a tokenizer the vocabulary is a placeholder;
        this serves to check the settings before the data are read.
        """

    def examples(
        self, source: Any, tokenizer: Tokenizer, config: RunConfig, show: Progress
    ) -> Examples:
        """Tokenize and split the data. Raises ValueError if there are too few."""

    def sample(
        self, engine: Any, model: Any, tokenizer: Tokenizer, examples: Examples, *, brief: bool
    ) -> str:
        """Return an example of the model's output; brief: in one line."""


@dataclass(frozen=True)
class NextToken:
    """The next token of a text, learned by a GPT."""

    def read(self, name: str) -> Source:
        """Read a text: see `data.sources.read`."""
        return sources.read(name)

    def sha256_of(self, source: Source) -> str:
        """Return the SHA-256 of the text."""
        return source.sha256

    def tokenizer(self, source: Source, kind: str, vocabulary: int | None) -> Tokenizer:
        """Return a tokenizer for the text."""
        return source.tokenizer(kind, vocabulary)

    def end_token(self, source: Source, tokenizer: Tokenizer) -> int | None:
        """Return the token after each document; None if the text is not divided."""
        return source.end_token(tokenizer)

    def model(self, settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> GPTConfig:
        """Return the config of a GPT: a preset, overridden by the other settings."""
        overrides = {k: v for k, v in settings.items() if k not in ("preset", "vocabulary")}
        size = 1 if tokenizer is None else tokenizer.vocabulary
        return preset(settings.get("preset", "gpt2"), overrides, vocabulary=size)

    def examples(
        self, source: Source, tokenizer: Tokenizer, config: RunConfig, show: Progress
    ) -> Examples:
        """Tokenize the text if its tokens are not in the cache, and split it."""
        train, validation, which = source.split(tokenizer, config.window, show)
        summary = (
            f"{config.text}: {len(train):,} training tokens, {len(validation):,} held out{which}, "
            f"vocabulary of {config.model.vocabulary:,}"
        )
        return Examples(train, validation, validation, summary)

    def sample(
        self, engine: Any, model: Any, tokenizer: Tokenizer, examples: Examples, *, brief: bool
    ) -> str:
        """Generate a continuation of the first held-out token."""
        start, count = examples.shown[:1], 40 if brief else 120
        written = engine.generate(model, [start], tokens=count, temperature=0.8, top_p=0.95)
        text = tokenizer.decode([*start.tolist(), *(token for (token,) in written)]).strip()
        return " ".join(text.split()) if brief else text


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences: the model learns to translate, or to predict masked source words."""

    def read(self, name: str) -> Rows:
        """Read pairs: see `data.pairs.read`."""
        return pairs.read(name)

    def sha256_of(self, source: Rows) -> str:
        """Return the SHA-256 of all sentences of both languages, one per line."""
        return digest(_lines(source))

    def tokenizer(self, source: Rows, kind: str, vocabulary: int | None) -> Tokenizer:
        """Return a tokenizer for both languages."""
        return tokenizer_for(_lines(source), kind, vocabulary)

    def end_token(self, source: Rows, tokenizer: Tokenizer) -> None:
        """Return None: pairs have no documents."""
        return None

    def model(self, settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> Seq2SeqConfig:
        """Return the config of an encoder-decoder model of the kind `settings["kind"]`."""
        size = 1 if tokenizer is None else tokenizer.vocabulary
        return Seq2SeqConfig(**{**settings, "vocabulary": size + FIRST})

    def examples(
        self, source: Rows, tokenizer: Tokenizer, config: RunConfig, show: Progress
    ) -> Examples:
        """Split the pairs by `data.pairs.split`, and tokenize those that fit the context."""
        parts, longer = translation.held(source, tokenizer, config.model.context)
        stride = -(-len(parts.validation) // config.training.evaluation_windows)
        evaluated = parts.validation[::stride]  # evenly spaced, because files are often sorted
        third = -(-len(parts.validation) // 3)
        summary = (
            f"{config.text}: {len(parts.train):,} training pairs, "
            f"{len(parts.validation) + len(parts.test):,} held out, "
            f"vocabulary of {config.model.vocabulary:,}; {config.seq2seq.kind}"
        )
        note = f"{longer:,} pairs are longer than {config.model.context} tokens and are left out"
        return Examples(
            translation.encode(parts.train, tokenizer),
            translation.encode(evaluated, tokenizer),
            parts.validation[third // 2 :: third],
            summary,
            f"{note}; a larger --context includes them" if longer else "",
            {translation.WORDS: translation.words_file(parts.train)},
        )

    def sample(
        self, engine: Any, model: Any, tokenizer: Tokenizer, examples: Examples, *, brief: bool
    ) -> str:
        """Return held-out sentences, with their translations or with predicted words filled in."""
        sources = [pair.source for pair in examples.shown]
        if brief:
            (answer,) = engine.answers(model, tokenizer, sources[-1:], beams=1)
            return f"{sources[-1]} → {answer}"
        answers = engine.answers(model, tokenizer, sources, beams=4)
        return "\n\n".join(f"{a}\n{b}" for a, b in zip(sources, answers, strict=True))


def _lines(source: Rows) -> str:
    return "\n".join("\n".join(pair) for pair in source)


TASKS: Mapping[str, Task] = MappingProxyType(
    {"next-token": NextToken(), "translation": Pairs(), "masked-words": Pairs()}
)


def task_named(name: str) -> Task:
    """The task of this name. Raises ValueError for an unknown one."""
    return named(TASKS, name, "task")
