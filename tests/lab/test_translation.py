"""Scores of translations: known ones come out, words are put together, gaps are filled."""

import numpy as np
import pytest
import torch

from headway.data import grammar, pairs
from headway.data.pairs import FIRST, Pair
from headway.data.tokenizers import BYTES, Tokenizer
from headway.lab import translation as lab
from headway.lab.translation import Answer, Question
from headway.models.seq2seq import Seq2SeqConfig
from headway.torch import seq2seq
from headway.torch.translate import filled

SENTENCE, GERMAN = "The dog, who sleeps, sings.", "Der Hund, der schläft, singt."
TOKENIZER = Tokenizer.byte_pairs((SENTENCE + " " + GERMAN + " ") * 20, 275)


def answer(message, target=GERMAN, **other):
    return Answer(
        Question(SENTENCE, target), message, **{"complete": True, "right": 3, "tokens": 4, **other}
    )


def test_scores_of_what_is_right_and_of_what_is_not():
    good = lab.scores([answer(GERMAN)] * 3)
    assert (good.sentences, good.exact, good.tokens, good.aer) == (3, 1.0, 0.75, None)
    assert good.bleu == pytest.approx(100)
    assert good.chrf == pytest.approx(100)
    mixed = lab.scores([answer(GERMAN), answer("Die Katze geht.")])
    assert mixed.exact == 0.5
    assert 0 < mixed.bleu < 100
    nothing = lab.scores([answer("x y z w")])
    assert nothing.bleu < 5
    assert nothing.exact == 0


def test_the_alignment_error_rate_is_och_and_neys():
    # Of 5 guesses 4 are right, of 3 sure links 2 are guessed: 1 - (4 + 2) / (5 + 3).
    one = answer(GERMAN, hits=1, sure_hits=1, guesses=2, sure=1)
    other = answer(GERMAN, hits=3, sure_hits=1, guesses=3, sure=2)
    assert lab.aer([one, other]) == pytest.approx(1 - 6 / 8)
    assert lab.scores([one, other]).aer == pytest.approx(0.25)
    assert lab.aer([answer(GERMAN, hits=2, sure_hits=2, guesses=2, sure=2)]) == 0


def test_signatures_name_the_metrics_and_their_version():
    bleu, chrf = lab.signatures()
    assert bleu.startswith("BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert chrf.startswith("chrF: nrefs:1|")


def test_tokens_become_words():
    """Each word of the source is looked at by one word of the target, token by token."""
    source, target = (pairs.encoded(item, TOKENIZER)[:-1].tolist() for item in (SENTENCE, GERMAN))
    assert len(source) > len(pairs.words(SENTENCE))  # some words are several tokens
    (read, columns), (message, rows) = (lab._words(item, TOKENIZER) for item in (source, target))
    for tokens, owners, result in ((source, columns, read), (target, rows, message)):
        spelled = [b""] * len(result)
        for token, owner in zip(tokens, owners, strict=True):
            spelled[owner] += TOKENIZER.token_bytes(token - FIRST)
        assert [item.decode().strip() for item in spelled] == result
    weights = np.zeros((len(target) + 1, len(source) + 1))
    for row, owner in enumerate(rows):
        there = [column for column, own in enumerate(columns) if own == owner]
        weights[row, there] = 0.9 / len(there)
        weights[row, -1] = 0.1  # the end, which is no word
    result = lab.by_word(weights, source, target, TOKENIZER)
    np.testing.assert_allclose(result.weights, 0.9 * np.eye(len(pairs.words(GERMAN))))
    assert (result.source, result.target) == (pairs.words(SENTENCE), pairs.words(GERMAN))


def test_words_are_those_of_the_tokens_however_they_were_cut():
    german = "Der Hund, der schläft."
    usual = pairs.encoded(german, TOKENIZER)[:-1].tolist()
    spelled = [FIRST + TOKENIZER._backend.token_to_id(name) for name in bytewise(german)]
    assert len(spelled) > len(usual)
    for tokens in (usual, spelled):
        read, owners = lab._words(tokens, TOKENIZER)
        assert read == pairs.words(german)
        assert owners == sorted(owners)
        assert sorted(set(owners)) == [*range(len(read))]
    half, owners = lab._words(spelled[:19], TOKENIZER)  # it ends within the letter ä
    assert half[-2:] == ["schl", "?"]
    assert len(owners) == 19
    for blank in ([], [FIRST + TOKENIZER._backend.token_to_id("Ġ")]):
        read, owners = lab._words(blank, TOKENIZER)
        assert (len(read), owners) == (1, [0] * len(blank))


def bytewise(text):
    """The names of the tokens of single bytes."""
    names = {byte: name for name, byte in BYTES.items()}
    return [names[byte] for byte in text.encode()]


def test_new_sentences_of_a_grammar_reach_beyond_what_was_learnt():
    learnt = [item.english for item in grammar.examples(300, [0], seed=1)]
    known = frozenset(learnt)
    result = lab.questions("grammar:1", known, [])
    depths = [item.depth for item in result]
    assert sorted(set(depths)) == [0, 1, 2, 3]
    assert all(depths.count(depth) == lab.PER_DEPTH for depth in range(4))
    assert not known & {item.source for item in result}
    assert all(item.links for item in result)
    some = [Pair("a", "b")]
    assert lab.questions("file.tsv", frozenset(), some) == [Question("a", "b")]


def test_groups_by_length_and_depth_leave_nothing_out():
    some = [Answer(Question("x " * n, "y", depth=n % 3), "y", True, 1, 1) for n in range(1, 60)]
    groups = lab.by_length(some)
    assert sum(map(len, groups.values())) == len(some)
    assert [*groups][:2] == ["1 to 5 words", "6 to 10 words"]
    assert len(groups["6 to 10 words"]) == 5
    assert "more than 40 words" in groups
    assert {name: len(group) for name, group in lab.by_depth(some).items()} == {
        "depth 0": 19,
        "depth 1": 20,
        "depth 2": 20,
    }


def test_what_does_not_fit_is_counted():
    asked = [Question("a", "b"), Question("a" * 50, "b"), Question("a", "b" * 50)]
    held, longer = lab.fitting(asked, TOKENIZER, 20)
    assert (held, longer) == (asked[:1], 2)


def test_answers_survive_json():
    one = answer("x", hits=1, sure_hits=1, guesses=2, sure=1)
    assert lab.from_dict(lab.as_dict(one)) == one


@pytest.fixture(scope="module")
def model():
    config = Seq2SeqConfig("bahdanau", TOKENIZER.vocabulary + FIRST, context=40, width=16)
    return seq2seq.Seq2Seq(config)


def test_right_tokens_are_those_that_are_likeliest_after_the_right_ones(model):
    asked = [Question(SENTENCE, GERMAN), Question("The dog.", "Der Hund.")]
    result = lab.answers(model, TOKENIZER, asked, beams=1)
    for question, item in zip(asked, result, strict=True):
        source = pairs.encoded(question.source, TOKENIZER)
        target = pairs.encoded(question.target, TOKENIZER)
        right = 0
        for place, token in enumerate(target):
            inputs = torch.tensor([[pairs.START, *target[:place]]])
            logits = model(torch.from_numpy(source)[None], torch.tensor([len(source)]), inputs)
            right += int(logits[0, -1].argmax()) == token
        assert (item.right, item.tokens) == (right, len(target))


def test_a_perfect_alignment_makes_no_error(model, monkeypatch):
    example = next(e for e in grammar.examples(50, [1], seed=3) if "müssen" not in e.german)
    question = Question(example.english, example.german, example.alignment, 1)
    tokenizer = Tokenizer.byte_pairs(example.english + example.german, 400)
    both = (pairs.encoded(text, tokenizer)[:-1] for text in (example.german, example.english))
    rows, columns = (lab._words(tokens.tolist(), tokenizer)[1] for tokens in both)
    partners = {german: english for english, german in example.alignment}

    def perfect(model, source, target):
        weights = np.zeros((len(rows) + 1, len(columns) + 1))
        for row, owner in enumerate(rows):
            there = [c for c, own in enumerate(columns) if own == partners.get(owner)]
            weights[row, there] = 1 / max(1, len(there))
        return weights

    monkeypatch.setattr(lab, "alignment", perfect)
    hits, sure_hits, guesses, sure = lab._links(model, tokenizer, question)
    assert (hits, sure_hits) == (guesses, sure)
    assert guesses == len({german for _, german in example.alignment})
    monkeypatch.setattr(lab, "alignment", lambda *_: np.eye(len(rows) + 1, len(columns) + 1)[::-1])
    hits, _, guesses, _ = lab._links(model, tokenizer, question)
    assert hits < guesses / 2


def test_gaps_are_filled_in_brackets():
    config = Seq2SeqConfig("encoder", TOKENIZER.vocabulary + FIRST, context=40, width=16)
    made = seq2seq.Seq2Seq(config)
    result = filled(made, TOKENIZER, "The _, who _ sings.")
    assert result.count("[") == result.count("]") == 2
    assert result.startswith("The")
    assert result.endswith(" sings.")
