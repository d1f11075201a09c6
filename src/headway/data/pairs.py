"""Sentences in two languages: read, checked, held out, and made into batches."""

from __future__ import annotations

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

# What is no word: the tokenizer's own numbers come after these.
PADDING, START, END, MASK, FIRST = range(5)

GRAMMAR = "grammar"
SENTENCES = 24_000  # of the grammar
DEPTH = 2  # of those, at most
AND = " + "  # between the names of two files
HELD_OUT = 10  # one pair of so many
TESTED = 1000  # of these, at most half, are for the test
LEAST = 20  # pairs

WORD = re.compile(r"\w+|[^\w\s]")


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


class Split(NamedTuple):
    """Pairs to learn from, to watch the training with, and to test; no source in two of them."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]


def words(sentence: str) -> list[str]:
    """The words and the marks of a sentence."""
    return WORD.findall(sentence)


@lru_cache(maxsize=2)  # the race asks for each of its runs
def read(source: str) -> tuple[Pair, ...]:
    """Pairs by name: `grammar` (or `grammar:DEPTH`, by default 2), a file with a tab between the
    two sentences of each line, or two files, "A + B", with a sentence in each line.

    Raises ValueError, naming lines, for what is no pair, for a file whose languages change places
    and for too few.
    """
    if is_grammar(source):
        depths = range(depth_of(source) + 1)
        some = grammar.examples(SENTENCES, depths, seed=0)
        return tuple(Pair(each.english, each.german) for each in some)
    first, both, second = source.partition(AND)
    pairs = _of_two(first, second) if both else _of_table(first)
    empty = [line for line, pair in enumerate(pairs, 1) if not all(map(str.strip, pair))]
    if empty:
        raise ValueError(
            f"{source}: a sentence is empty in {_lines(empty)}: fill it, or take it out"
        )
    if len(pairs) < LEAST:
        raise ValueError(f"{source} has {len(pairs)} pairs: give {LEAST} or more")
    swapped = [place + 1 for place in _swapped(pairs)]
    if swapped:
        raise ValueError(
            f"{source}: the languages seem to have changed places in {_lines(swapped)}: swap them "
            "back, or take them out"
        )
    return tuple(pairs)


def is_grammar(source: str) -> bool:
    """Whether the pairs come from the grammar."""
    return source.partition(":")[0] == GRAMMAR


def depth_of(source: str) -> int:
    """The depth in `grammar:DEPTH`. Raises ValueError when it is no number from 0 to 9."""
    _, colon, depth = source.partition(":")
    if colon and not re.fullmatch("[0-9]", depth):
        raise ValueError(f"the depth of the grammar is from 0 to 9: {depth!r} is not")
    return int(depth or DEPTH)


def split(pairs: Sequence[Pair]) -> Split:
    """A tenth of the pairs is held out: all of some source sentences, chosen by their SHA-256, so
    that the choice depends neither on a seed nor on the order of the lines."""
    held_out = round(len(pairs) / HELD_OUT)
    tested = min(TESTED, held_out // 2)
    counts = Counter(pair.source for pair in pairs)
    ends, total = {}, 0
    for source in sorted(counts, key=digest):
        total += counts[source]
        ends[source] = total
    found = Split([], [], [])
    for pair in pairs:
        end = ends[pair.source]
        found[0 if end > held_out else 1 if end > tested else 2].append(pair)
    return found


def _of_table(name: str) -> list[Pair]:
    """Further columns, as in Tatoeba's files with their sources, are left alone."""
    rows = [line.split("\t") for line in _lines_of(name)]
    short = [number for number, row in enumerate(rows, 1) if len(row) < 2]
    if short:
        raise ValueError(f"{name}: no two sentences, with a tab between, in {_lines(short)}")
    return [Pair(row[0], row[1]) for row in rows]


def _of_two(first: str, second: str) -> list[Pair]:
    one, other = _lines_of(first), _lines_of(second)
    if len(one) != len(other):
        longer, shorter = (first, second) if len(one) > len(other) else (second, first)
        less, more = sorted((len(one), len(other)))
        raise ValueError(
            f"{longer} has {more:,} lines, {shorter} {less:,}: line {less + 1} of {longer} has no "
            "partner; each line is the translation of the same line of the other file"
        )
    return [*map(Pair, one, other)]


def _lines_of(name: str) -> list[str]:
    """The lines of a file, cut at line feeds alone: sentences hold the stranger line ends.

    Raises ValueError when there is no such file.
    """
    if not Path(name).is_file():
        raise ValueError(f"no file {name}: --pairs takes a table, or two files")
    text = corpora.read_file(Path(name)).removeprefix("\ufeff").replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n")


def _swapped(pairs: Sequence[Pair]) -> Iterator[int]:
    """The pairs whose words are far more usual in the other column of all other pairs."""
    counts = [Counter(word for pair in pairs for word in set(words(pair[n]))) for n in (0, 1)]

    def leaning(sentence: str, column: int) -> float:
        """How much more its words belong to its own column, as the logarithm of a ratio."""
        found = 0.0
        for word in set(words(sentence)):
            own, other = counts[column][word] - 1, counts[1 - column][word]
            found += log((own + 1) / (other + 1))
        return found

    for place, pair in enumerate(pairs):
        if leaning(pair.source, 0) < -5 and leaning(pair.target, 1) < -5:
            yield place


def _lines(numbers: Sequence[int]) -> str:
    some = ", ".join(map(str, numbers[:5]))
    return f"line{'s' * (len(numbers) > 1)} {some}" + f" and {len(numbers) - 5:,} more" * (
        len(numbers) > 5
    )


class Batch(NamedTuple):
    """Pairs side by side, PADDING after the shorter ones. inputs begin with START and are what the
    decoder sees; targets end with END and are what it should say."""

    source: Int[np.ndarray, "pairs source"]
    lengths: Int[np.ndarray, " pairs"]
    inputs: Int[np.ndarray, "pairs target"]
    targets: Int[np.ndarray, "pairs target"]

    @property
    def size(self) -> int:
        """Tokens, without the padding."""
        return int(self.lengths.sum() + (self.targets != PADDING).sum())


def encoded(sentence: str, tokenizer: Tokenizer) -> Int[np.ndarray, " tokens"]:
    """The tokens of a sentence and END; the tokenizer's own numbers come after the special ones."""
    return np.append(tokenizer.encode(sentence) + FIRST, END)


@final
class Bucketed:
    """Pairs in batches of pairs that are about as long; every batch is a function of (seed, step).

    most: tokens in a batch, padding and both languages counted. Every epoch has each pair once,
    and as many batches, for what lies at the same length changes places and nothing else does.
    """

    def __init__(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], most: int) -> None:
        self._pairs = pairs
        self._lengths = np.array([max(map(len, pair)) for pair in pairs])
        longest = np.sort(self._lengths)
        self._cuts = [0]
        for place, length in enumerate(longest, 1):
            if place - self._cuts[-1] > 1 and 2 * length * (place - self._cuts[-1]) > most:
                self._cuts.append(place - 1)
        self._cuts.append(len(pairs))
        self._tokens = sum(len(sentence) for pair in pairs for sentence in pair)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._cuts) - 1

    def tokens(self, step: int) -> int:
        """How many tokens, without padding, there are in `step` batches, as a mean of an epoch."""
        return round(step * self._tokens / len(self))

    def batch(self, seed: int, step: int) -> Batch:
        """The batch of a step."""
        epoch, place = divmod(step, len(self))
        order, turns = self._epoch(seed, epoch)
        first, last = self._cuts[turns[place]], self._cuts[turns[place] + 1]
        return batch([self._pairs[pair] for pair in order[first:last]])

    def all(self) -> Iterator[Batch]:
        """Every pair once, the short ones first."""
        order = np.argsort(self._lengths, kind="stable")
        for first, last in zip(self._cuts, self._cuts[1:], strict=False):
            yield batch([self._pairs[pair] for pair in order[first:last]])

    @lru_cache(maxsize=1)  # noqa: B019 - the trainer holds it as long as the process lives
    def _epoch(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The pairs by length, those of one length shuffled, and the order of the batches."""
        generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        shuffled = generator.permutation(len(self._pairs))
        order = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
        return order, generator.permutation(len(self))


def batch(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Pairs of encoded sentences side by side."""
    targets = _padded([target for _, target in pairs])
    started = np.full((len(pairs), 1), START)
    inputs = np.concatenate([started, targets[:, :-1]], axis=1)
    sources = [source for source, _ in pairs]
    lengths = np.array([len(source) for source in sources])
    return Batch(_padded(sources), lengths, inputs, targets)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    whole = np.full((len(rows), max(map(len, rows))), PADDING)
    for line, row in zip(whole, rows, strict=True):
        line[: len(row)] = row
    return whole
