"""The quality of a translation model: in total, by sentence length and by depth."""

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

BEYOND = 2  # depths in the test beyond those of the training data
PER_DEPTH = 200  # test sentences per depth
LENGTHS = (5, 10, 15, 20, 30, 40)  # the last number of words in each group of sentences
_BATCH = 64


class Alignment(NamedTuple):
    """The attention weights from each word of the target to each word of the source."""

    source: list[str]
    target: list[str]
    weights: Float[np.ndarray, "target source"]


@dataclass(frozen=True)
class Question:
    """A sentence to translate, with its alignment (pairs of words) and depth, if known."""

    source: str
    target: str
    links: tuple[tuple[int, int], ...] = ()
    depth: int | None = None


@dataclass(frozen=True)
class Answer:
    """The translation of a question, and its scores.

    complete: whether the model ended it; otherwise it was cut. right: how many tokens of the target
    the model predicts, given those before. tokens: of the target. hits, sure_hits, guesses, sure:
    numbers of links, see `aer`.
    """

    question: Question
    text: str
    complete: bool
    right: int
    tokens: int
    hits: int = 0
    sure_hits: int = 0
    guesses: int = 0
    sure: int = 0


class Scores(NamedTuple):
    """The scores of several sentences. bleu, chrf: of sacrebleu; exact: the fraction of exact
    matches; tokens: the fraction of right tokens; aer: the alignment error rate, None without
    known alignments."""

    sentences: int
    bleu: float
    chrf: float
    exact: float
    tokens: float
    aer: float | None


def as_dict(answer: Answer) -> dict[str, Any]:
    """Return values for JSON; the alignment of the question is left out."""
    question = answer.question
    known = {"source": question.source, "target": question.target, "depth": question.depth}
    return known | {name: value for name, value in vars(answer).items() if name != "question"}


def from_dict(values: Mapping[str, Any]) -> Answer:
    """Return the answer of `as_dict`."""
    rest = {**values}
    question = Question(rest.pop("source"), rest.pop("target"), depth=rest.pop("depth"))
    return Answer(question, **rest)


def questions(source: str, known: frozenset[str], test: Sequence[pairs.Pair]) -> list[Question]:
    """Return the test sentences. source: of the pairs. known: the sentences of the training data.
    test: the held-out pairs; a grammar instead generates new sentences, also of greater depths."""
    if not pairs.is_grammar(source):
        return [Question(*pair) for pair in test]
    result: list[Question] = []
    for depth in range(pairs.depth_of(source) + BEYOND + 1):
        generated = grammar.examples(4 * PER_DEPTH, [depth], seed=1 + depth)
        new = {e.english: e for e in generated if e.english not in known}
        result += [
            Question(e.english, e.german, e.alignment, e.depth) for e in [*new.values()][:PER_DEPTH]
        ]
    return result


def answers(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    beams: int,
    show: Callable[[int], object] = lambda more: None,
) -> list[Answer]:
    """Translate all questions. show: called with the number of further answers.

    Raises ValueError for a sentence that is too long for the model.
    """
    attends = model.config.kind != "rnn"
    result = []
    for first in range(0, len(questions), _BATCH):
        batch = questions[first : first + _BATCH]
        outputs = translated(model, tokenizer, [question.source for question in batch], beams)
        right = _right(model, tokenizer, batch)
        for question, output, (hits, tokens) in zip(batch, outputs, right, strict=True):
            links = _links(model, tokenizer, question) if attends and question.links else ()
            result.append(Answer(question, output.text, output.complete, hits, tokens, *links))
        show(len(batch))
    return result


def fitting(
    questions: Sequence[Question], tokenizer: Tokenizer, context: int
) -> tuple[list[Question], int]:
    """Return the questions that are not too long for this context, and the number of others."""
    short = [q for q in questions if translation.fits(q.source, q.target, tokenizer, context)]
    return short, len(questions) - len(short)


def by_word(
    weights: Float[np.ndarray, "target source"],
    source: Sequence[int],
    target: Sequence[int],
    tokenizer: Tokenizer,
) -> Alignment:
    """Reduce weights between tokens to weights between words: the mean over the tokens of a target
    word, the sum over those of a source word. The last row and column, of the ends, are left out.

    source, target: the tokens as the model has them, without the ends; a model may split a word in
    another way than the tokenizer.
    """
    (read, columns), (written, rows) = _words(source, tokenizer), _words(target, tokenizer)
    by_words = np.zeros((len(written), len(read)))
    for row, of_token in zip(rows, weights[:-1], strict=True):
        for column, weight in zip(columns, of_token[:-1], strict=True):
            by_words[row, column] += weight / rows.count(row)
    return Alignment(read, written, by_words)


def scores(answers: Sequence[Answer]) -> Scores:
    """Return the scores of all answers together. Needs the extra `translate`."""
    from sacrebleu import BLEU, CHRF  # late: an extra

    texts, targets = [a.text for a in answers], [[a.question.target for a in answers]]
    return Scores(
        sentences=len(answers),
        bleu=BLEU().corpus_score(texts, targets).score,
        chrf=CHRF().corpus_score(texts, targets).score,
        exact=sum(a.text == a.question.target for a in answers) / len(answers),
        tokens=sum(a.right for a in answers) / sum(a.tokens for a in answers),
        aer=aer(answers) if any(a.sure for a in answers) else None,
    )


def signatures() -> list[str]:
    """Return the versions and settings of sacrebleu's scores, in its own notation."""
    from sacrebleu import BLEU, CHRF

    result = []
    for name, metric in (("BLEU", BLEU()), ("chrF", CHRF())):
        metric.corpus_score(["a"], [["a"]])  # get_signature needs the number of references
        result.append(f"{name}: {metric.get_signature()}")
    return result


def aer(answers: Sequence[Answer]) -> float:
    """1 - (|A and S| + |A and P|) / (|A| + |S|)  (Och and Ney 2003, equation 9).

    A: for each aligned word of the target, the word of the source with its largest weight. P: all
    links; S: the links of target words that have only one.
    """
    guesses, sure = sum(a.guesses for a in answers), sum(a.sure for a in answers)
    hits = sum(a.hits + a.sure_hits for a in answers)
    return 1 - hits / (guesses + sure)


def by_length(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Group answers by the number of words of the source."""
    result = {}
    for low, high in pairwise([0, *LENGTHS, 10**9]):
        group = [a for a in answers if low < len(words(a.question.source)) <= high]
        if group:
            name = f"{low + 1} to {high} words" if high < 10**9 else f"more than {low} words"
            result[name] = group
    return result


def by_depth(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Group answers by depth, if it is known."""
    depths = sorted({a.question.depth for a in answers if a.question.depth is not None})
    return {f"depth {n}": [a for a in answers if a.question.depth == n] for n in depths}


def _words(tokens: Sequence[int], tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """Return the words of a sentence and, for each token, the index of the word that contains most
    of it. A sentence without any word counts as one word."""
    raw = [tokenizer.token_bytes(token - FIRST) for token in tokens]
    text = b"".join(raw).decode(errors="surrogateescape")
    spans = [match.span() for match in pairs.WORD.finditer(text)] or [(0, len(text))]
    offsets = [0, *accumulate(len(char.encode(errors="surrogateescape")) for char in text)]
    inside = [(offsets[start], offsets[end]) for start, end in spans]

    def word_of(start: int, end: int) -> int:
        return max(
            range(len(inside)), key=lambda n: min(end, inside[n][1]) - max(start, inside[n][0])
        )

    ends = [*accumulate(map(len, raw))]
    indices = [word_of(end - len(part), end) for part, end in zip(raw, ends, strict=True)]
    shown = (text[start:end] for start, end in spans)
    return [word.encode(errors="replace").decode() for word in shown], indices


def _right(
    model: Seq2Seq, tokenizer: Tokenizer, questions: Sequence[Question]
) -> list[tuple[int, int]]:
    """Return, for each target, how many tokens the model predicts given those before, and how many
    there are."""
    rows = translation.encode([pairs.Pair(q.source, q.target) for q in questions], tokenizer)
    device = next(model.parameters()).device
    source, lengths, inputs, targets = placed(pairs.batch(rows), device)
    with torch.no_grad():
        predictions = model(source, lengths, inputs).argmax(-1)
    is_token = targets != PADDING
    hits = (predictions == targets) & is_token
    return list(zip(hits.sum(1).tolist(), is_token.sum(1).tolist(), strict=True))


def _links(model: Seq2Seq, tokenizer: Tokenizer, question: Question) -> tuple[int, int, int, int]:
    """Return hits, sure hits, guesses and sure links of a question, given its target."""
    source, target = encoded(question.source, tokenizer), encoded(question.target, tokenizer)[:-1]
    weights = alignment(model, source, target.tolist())
    guess = by_word(weights, source[:-1].tolist(), target.tolist(), tokenizer).weights.argmax(1)
    partners: dict[int, set[int]] = {}
    for english, german in question.links:
        partners.setdefault(german, set()).add(english)
    hit = {german for german, words in partners.items() if int(guess[german]) in words}
    sure = {german for german, words in partners.items() if len(words) == 1}
    return len(hit), len(hit & sure), len(partners), len(sure)
