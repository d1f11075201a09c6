"""How well a model translates: by itself, by the length of the sentences and by their depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from headway.data import grammar, pairs
from headway.data.pairs import FIRST, PADDING, encoded, words
from headway.data.tokenizers import Tokenizer
from headway.torch.seq2seq import Seq2Seq
from headway.torch.tasks import placed
from headway.torch.translate import alignment, translated
from headway.training import translation

BEYOND = 2  # how much deeper than what was learnt the test goes
EACH = 200  # test sentences of each depth
LENGTHS = (5, 10, 15, 20, 30, 40)  # words at which groups of sentences end
_AT_ONCE = 64


class Matrix(NamedTuple):
    """How much each word of the target looked at each of the source."""

    source: list[str]
    target: list[str]
    weights: Float[np.ndarray, "target source"]


@dataclass(frozen=True)
class Question:
    """A sentence to translate. links: of the words, where they are known; depth likewise."""

    source: str
    target: str
    links: tuple[tuple[int, int], ...] = ()
    depth: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came of it. whole: whether the model ended it, or it was cut. right, tokens: of the
    target's tokens, how many were the likeliest given those before, and how many there are. hits,
    sure_hits, guesses, sure: of links, see `aer`.
    """

    asked: Question
    said: str
    whole: bool
    right: int
    tokens: int
    hits: int = 0
    sure_hits: int = 0
    guesses: int = 0
    sure: int = 0


class Scores(NamedTuple):
    """Of some sentences. bleu, chrf: sacrebleu's; exact: the share that are right to the letter;
    tokens: the share of right tokens; aer: the alignment error rate, None without known links."""

    sentences: int
    bleu: float
    chrf: float
    exact: float
    tokens: float
    aer: float | None


def as_dict(answer: Answer) -> dict[str, Any]:
    """For JSON; `from_dict` makes it an answer again, but for the links."""
    asked = answer.asked
    known = {"source": asked.source, "target": asked.target, "depth": asked.depth}
    return known | {name: value for name, value in vars(answer).items() if name != "asked"}


def from_dict(found: Mapping[str, Any]) -> Answer:
    """Back from JSON."""
    own = {
        name: value for name, value in found.items() if name not in ("source", "target", "depth")
    }
    return Answer(Question(found["source"], found["target"], depth=found["depth"]), **own)


def questions(source: str, known: frozenset[str], some: Sequence[pairs.Pair]) -> list[Question]:
    """What to ask a model. source: of its pairs. known: the sentences that it learnt from; some:
    those held out for the test, which a grammar does not need: it makes new ones, of depths beyond
    those learnt too."""
    if not pairs.is_grammar(source):
        return [Question(*pair) for pair in some]
    found: list[Question] = []
    for depth in range(pairs.depth_of(source) + BEYOND + 1):
        fresh = grammar.examples(4 * EACH, [depth], seed=1 + depth)
        new = {each.english: each for each in fresh if each.english not in known}
        found += [
            Question(e.english, e.german, e.alignment, e.depth) for e in [*new.values()][:EACH]
        ]
    return found


def answers(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    asked: Sequence[Question],
    beams: int,
    show: Callable[[int], object] = lambda more: None,
) -> list[Answer]:
    """What a model says to each. show: told how many more are done.

    Raises ValueError for a sentence that the model cannot hold.
    """
    attends = model.config.kind != "rnn"
    found = []
    for first in range(0, len(asked), _AT_ONCE):
        some = asked[first : first + _AT_ONCE]
        said = translated(model, tokenizer, [each.source for each in some], beams)
        right = _right(model, tokenizer, some)
        for question, text, (hits, tokens) in zip(some, said, right, strict=True):
            links = _links(model, tokenizer, question) if attends and question.links else ()
            found.append(Answer(question, text.text, text.whole, hits, tokens, *links))
        show(len(some))
    return found


def fitting(
    asked: Sequence[Question], tokenizer: Tokenizer, context: int
) -> tuple[list[Question], int]:
    """Those that a model of this context can hold, and how many it cannot."""
    held = [
        each for each in asked if translation.fits(each.source, each.target, tokenizer, context)
    ]
    return held, len(asked) - len(held)


def by_word(
    weights: Float[np.ndarray, "target source"],
    source: Sequence[int],
    target: Sequence[int],
    tokenizer: Tokenizer,
) -> Matrix:
    """An alignment of tokens, ends included, as one of words: of each word of the target the mean
    over its tokens, of each of the source the sum. What looked at the end is left out.

    source, target: the tokens, as the model has them, without their ends: what a model writes need
    not be cut as the tokenizer would cut it.
    """
    (read, columns), (said, rows) = _owners(source, tokenizer), _owners(target, tokenizer)
    whole = np.zeros((len(said), len(read)))
    for row, token in zip(rows, weights[:-1], strict=True):
        for column, weight in zip(columns, token[:-1], strict=True):
            whole[row, column] += weight / rows.count(row)
    return Matrix(read, said, whole)


def scores(some: Sequence[Answer]) -> Scores:
    """BLEU, chrF and the other scores of all answers together. Needs the extra `translate`."""
    from sacrebleu import BLEU, CHRF  # late: an extra

    said, right = [each.said for each in some], [[each.asked.target for each in some]]
    sure = sum(each.sure for each in some)
    return Scores(
        sentences=len(some),
        bleu=BLEU().corpus_score(said, right).score,
        chrf=CHRF().corpus_score(said, right).score,
        exact=sum(each.said == each.asked.target for each in some) / len(some),
        tokens=sum(each.right for each in some) / sum(each.tokens for each in some),
        aer=aer(some) if sure else None,
    )


def signatures() -> list[str]:
    """How sacrebleu computes its scores, in its own short form."""
    from sacrebleu import BLEU, CHRF

    found = []
    for name, metric in (("BLEU", BLEU()), ("chrF", CHRF())):
        metric.corpus_score(["a"], [["a"]])  # before that it knows no number of references
        found.append(f"{name}: {metric.get_signature()}")
    return found


def aer(some: Sequence[Answer]) -> float:
    """1 - (|A and S| + |A and P|) / (|A| + |S|)  (Och and Ney 2003, equation 9).

    A: for each word of the target that stands for something, the word of the source that it looked
    at most. P: all links; S: those of words of the target that have one only.
    """
    guesses, sure = sum(each.guesses for each in some), sum(each.sure for each in some)
    hits = sum(each.hits + each.sure_hits for each in some)
    return 1 - hits / (guesses + sure)


def by_length(some: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Groups by the words of the source."""
    edges = [0, *LENGTHS, 10**9]
    found = {}
    for low, high in pairwise(edges):
        group = [each for each in some if low < len(words(each.asked.source)) <= high]
        if group:
            found[f"{low + 1} to {high} words" if high < 10**9 else f"more than {low} words"] = (
                group
            )
    return found


def by_depth(some: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Groups by depth, where there is such a thing."""
    depths = sorted({each.asked.depth for each in some if each.asked.depth is not None})
    return {f"depth {n}": [each for each in some if each.asked.depth == n] for n in depths}


def _owners(tokens: Sequence[int], tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """The words of a sentence and, for each of its tokens, the number of the word to which most of
    it belongs. A sentence without any word is one word, as it stands."""
    raw = [tokenizer.token_bytes(token - FIRST) for token in tokens]
    text = b"".join(raw).decode(errors="surrogateescape")
    spans = [match.span() for match in pairs.WORD.finditer(text)] or [(0, len(text))]
    place = [0, *accumulate(len(each.encode(errors="surrogateescape")) for each in text)]
    inside = [(place[start], place[end]) for start, end in spans]

    def owner(start: int, end: int) -> int:
        return max(
            range(len(inside)), key=lambda n: min(end, inside[n][1]) - max(start, inside[n][0])
        )

    ends = [*accumulate(map(len, raw))]
    found = [owner(end - len(each), end) for each, end in zip(raw, ends, strict=True)]
    shown = (text[start:end] for start, end in spans)
    return [each.encode(errors="replace").decode() for each in shown], found


def _right(model: Seq2Seq, tokenizer: Tokenizer, some: Sequence[Question]) -> list[tuple[int, int]]:
    """Of each target's tokens, how many are the likeliest after those before, and how many."""
    rows = translation.encode([pairs.Pair(each.source, each.target) for each in some], tokenizer)
    device = next(model.parameters()).device
    source, lengths, inputs, targets = placed(pairs.batch(rows), device)
    with torch.no_grad():
        likeliest = model(source, lengths, inputs).argmax(-1)
    there = targets != PADDING
    hits = (likeliest == targets) & there
    return list(zip(hits.sum(1).tolist(), there.sum(1).tolist(), strict=True))


def _links(model: Seq2Seq, tokenizer: Tokenizer, asked: Question) -> tuple[int, int, int, int]:
    """hits, sure hits, guesses and sure links of a question, its target given."""
    source, target = encoded(asked.source, tokenizer), encoded(asked.target, tokenizer)[:-1]
    weights = alignment(model, source, target.tolist())
    guess = by_word(weights, source[:-1].tolist(), target.tolist(), tokenizer).weights.argmax(1)
    partners: dict[int, set[int]] = {}
    for english, german in asked.links:
        partners.setdefault(german, set()).add(english)
    hit = {german for german, some in partners.items() if int(guess[german]) in some}
    sure = {german for german, some in partners.items() if len(some) == 1}
    return len(hit), len(hit & sure), len(partners), len(sure)
