"""Sentence pairs in two languages: reading, checking, splitting and batching."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import log
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Int

from headway.data import corpora, grammar
from headway.data.tokenizers import Tokenizer, digest

# Special tokens; those of the tokenizer come after them.
PADDING, START, END, MASK, FIRST = range(5)

GRAMMAR = "grammar"
SENTENCES = 24_000  # number of pairs that the grammar generates
DEPTH = 2  # default maximum depth of the grammar
AND = " + "  # separates the names of two files
HELD_OUT = 10  # one pair in this many is held out
TESTED = 1000  # maximum number of test pairs; at most half of the held-out pairs
LEAST = 20  # minimum number of pairs

WORD = re.compile(r"\w+|[^\w\s]")


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


class Split(NamedTuple):
    """Pairs for training, validation and test; no source sentence is in two of them."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]


def words(sentence: str) -> list[str]:
    """Return the words and punctuation marks of a sentence."""
    return WORD.findall(sentence)


@lru_cache(maxsize=2)  # a race reads the same pairs for every run
def read(source: str) -> tuple[Pair, ...]:
    """Return the pairs of a source.

    source: `grammar` (or `grammar:DEPTH`, by default 2); a file with two sentences per line,
    separated by a tab; or two files, "A + B", with one sentence per line.
    Raises ValueError with line numbers for incomplete pairs and for swapped languages, and for
    fewer than 20 pairs.
    """
    if is_grammar(source):
        depths = range(depth_of(source) + 1)
        examples = grammar.examples(SENTENCES, depths, seed=0)
        return tuple(Pair(example.english, example.german) for example in examples)
    first, separator, second = source.partition(AND)
    pairs = _of_two_files(first, second) if separator else _of_table(first)
    empty = [line for line, pair in enumerate(pairs, 1) if not all(map(str.strip, pair))]
    if empty:
        raise ValueError(f"{source}: empty sentence in {_lines(empty)}: complete or remove it")
    if len(pairs) < LEAST:
        raise ValueError(f"{source} must have at least {LEAST} pairs (got {len(pairs)})")
    swapped = [row + 1 for row in _swapped(pairs)]
    if swapped:
        raise ValueError(
            f"{source}: the two languages seem to be swapped in {_lines(swapped)}: swap them back "
            "or remove these lines"
        )
    return tuple(pairs)


def is_grammar(source: str) -> bool:
    """Whether this source is the grammar."""
    return source.partition(":")[0] == GRAMMAR


def depth_of(source: str) -> int:
    """Return the depth in `grammar:DEPTH`. Raises ValueError unless it is from 0 to 9."""
    _, colon, depth = source.partition(":")
    if colon and not re.fullmatch("[0-9]", depth):
        raise ValueError(f"the depth of the grammar must be from 0 to 9 (got {depth!r})")
    return int(depth or DEPTH)


def split(pairs: Sequence[Pair]) -> Split:
    """Hold out a tenth of the pairs for validation and test.

    The choice depends only on the SHA-256 of the source sentences, not on a seed or on the order of
    the lines.
    """
    held_out = round(len(pairs) / HELD_OUT)
    tested = min(TESTED, held_out // 2)
    counts = Counter(pair.source for pair in pairs)
    ends, total = {}, 0
    for source in sorted(counts, key=digest):
        total += counts[source]
        ends[source] = total
    parts = Split([], [], [])
    for pair in pairs:
        end = ends[pair.source]
        parts[0 if end > held_out else 1 if end > tested else 2].append(pair)
    return parts


def _of_table(name: str) -> list[Pair]:
    """Read the first two columns of a file; further ones, as in Tatoeba's files, are ignored."""
    rows = [line.split("\t") for line in _lines_of(name)]
    short = [number for number, row in enumerate(rows, 1) if len(row) < 2]
    if short:
        raise ValueError(f"{name}: expected two sentences separated by a tab in {_lines(short)}")
    return [Pair(row[0], row[1]) for row in rows]


def _of_two_files(first: str, second: str) -> list[Pair]:
    sources, targets = _lines_of(first), _lines_of(second)
    if len(sources) != len(targets):
        raise ValueError(
            "both files must have the same number of lines, each the translation of the same line "
            f"of the other file (got {len(sources):,} in {first} and {len(targets):,} in {second})"
        )
    return [*map(Pair, sources, targets)]


def _lines_of(name: str) -> list[str]:
    """Split a file at line feeds only, because sentences may contain other line separators.

    Raises ValueError if the file is not found.
    """
    if not Path(name).is_file():
        raise ValueError(
            f"file {name!r} not found: --pairs takes grammar, grammar:DEPTH, or one or two files"
        )
    text = corpora.read_file(Path(name)).removeprefix("\ufeff").replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n")


def _swapped(pairs: Sequence[Pair]) -> Iterator[int]:
    """Yield the rows whose words are far more frequent in the other column."""
    counts = [Counter(word for pair in pairs for word in set(words(pair[n]))) for n in (0, 1)]

    def log_odds(sentence: str, column: int) -> float:
        """Sum log((this + 1) / (other + 1)) over the words of a sentence.

        this: the number of other rows that have the word in this column. other: the number of rows
        that have it in the other column. counts[column] includes the sentence itself: the + 1.
        """
        return sum(
            log(counts[column][word] / (counts[1 - column][word] + 1))
            for word in set(words(sentence))
        )

    for row, pair in enumerate(pairs):
        if log_odds(pair.source, 0) < -5 and log_odds(pair.target, 1) < -5:
            yield row


def _lines(numbers: Sequence[int]) -> str:
    first = ", ".join(map(str, numbers[:5]))
    more = f" and {len(numbers) - 5:,} more" if len(numbers) > 5 else ""
    return f"line{'s' * (len(numbers) > 1)} {first}{more}"


class Batch(NamedTuple):
    """Token pairs, padded on the right.

    lengths: the number of tokens of each source, without padding. inputs: the tokens that the
    decoder reads, beginning with START. targets: the tokens that it should predict, ending with
    END.
    """

    source: Int[np.ndarray, "pairs source"]
    lengths: Int[np.ndarray, " pairs"]
    inputs: Int[np.ndarray, "pairs target"]
    targets: Int[np.ndarray, "pairs target"]

    @property
    def size(self) -> int:
        """The number of tokens, without the padding."""
        return int(self.lengths.sum() + (self.targets != PADDING).sum())


def encoded(sentence: str, tokenizer: Tokenizer) -> Int[np.ndarray, " tokens"]:
    """Return the tokens of a sentence and END; the special tokens come before the tokenizer's."""
    return np.append(tokenizer.encode(sentence) + FIRST, END)


@final
class Bucketed:
    """Batches of pairs of similar length; every batch is a function of (seed, step).

    most: the maximum number of tokens in a batch, counting both languages and the padding; a single
    pair may have more. An epoch contains every pair once. Only pairs of the same length are
    shuffled, so every epoch has the same number of batches.
    """

    def __init__(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], most: int) -> None:
        self._pairs = pairs
        self._lengths = np.array([max(map(len, pair)) for pair in pairs])
        longest = np.sort(self._lengths)
        self._cuts = [0]
        for end, length in enumerate(longest, 1):
            if end - self._cuts[-1] > 1 and 2 * length * (end - self._cuts[-1]) > most:
                self._cuts.append(end - 1)
        self._cuts.append(len(pairs))
        self._tokens = sum(len(sentence) for pair in pairs for sentence in pair)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self._cuts) - 1

    def tokens(self, step: int) -> int:
        """Return the mean number of tokens, without padding, in `step` batches."""
        return round(step * self._tokens / len(self))

    def batch(self, seed: int, step: int) -> Batch:
        """Return the batch of a step."""
        epoch, index = divmod(step, len(self))
        order, batches = self._epoch(seed, epoch)
        first, last = self._cuts[batches[index]], self._cuts[batches[index] + 1]
        return batch([self._pairs[pair] for pair in order[first:last]])

    def all(self) -> Iterator[Batch]:
        """Yield every pair once, the shortest first."""
        order = np.argsort(self._lengths, kind="stable")
        for first, last in zip(self._cuts, self._cuts[1:], strict=False):
            yield batch([self._pairs[pair] for pair in order[first:last]])

    @lru_cache(maxsize=1)  # noqa: B019 - the trainer keeps it until the process ends
    def _epoch(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of the pairs (by length, random within a length) and of the batches."""
        generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        shuffled = generator.permutation(len(self._pairs))
        order = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
        return order, generator.permutation(len(self))


def batch(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Return a batch of pairs of encoded sentences."""
    targets = _padded([target for _, target in pairs])
    started = np.full((len(pairs), 1), START)
    inputs = np.concatenate([started, targets[:, :-1]], axis=1)
    sources = [source for source, _ in pairs]
    lengths = np.array([len(source) for source in sources])
    return Batch(_padded(sources), lengths, inputs, targets)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), PADDING)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded
