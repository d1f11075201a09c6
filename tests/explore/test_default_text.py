"""The text that the explorer chooses: a sentence of the corpus, a plain one, or a generated one."""

import shutil

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

import headway
from headway.data.tokenizers import Tokenizer
from headway.explore import default_text
from headway.explore.tracers import ModelTracer
from headway.hf.stored import StoredModel

SIZES = {"context": 64, "width": 8, "layers": 1, "heads": 1, "steps": 1, "batch": 1}
FILLER = "No sentence of this line counts: see [1] for 22 of them, e.g. these.\n\n" * 60
CORPUS = (
    "The first part is not held out and so this sentence is not shown.\n\n"
    + FILLER
    + "Then a short one came. He met the man who calls himself Mr. Smith. It begins\n"
    "here and ends on the next line. the small letter begins no sentence of this text. "
    + "This one has so many words that nobody would like to read all of them on one page.\n\n"
    + FILLER[:71]
)
CHOSEN = "It begins here and ends on the next line."


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains a run on a text, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def train(text, **options):
        (tmp_path / "corpus.txt").write_text(text)
        source = str(tmp_path / "corpus.txt")
        return headway.train(source, runs=str(tmp_path), **{"tokenizer": "char"} | SIZES | options)

    return train


def text_of(run):
    return ModelTracer(StoredModel.open(run.path)).default_text()


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_a_sentence_of_the_held_out_part(trained, tmp_path, tokenizer):
    run = trained(CORPUS, tokenizer=tokenizer)
    (tmp_path / "corpus.txt").unlink()  # neither needed nor read
    assert text_of(run) == CHOSEN


def test_it_fits_the_context(trained):
    assert text_of(trained(CORPUS, context=48)) == CHOSEN
    assert len(text_of(trained(CORPUS, context=30))) <= 30  # generated: no sentence fits


def test_without_the_tokens_of_the_corpus_a_plain_sentence(trained, tmp_path):
    run = trained(CORPUS + default_text.PLAIN + FILLER)
    shutil.rmtree(tmp_path / "cache")
    assert text_of(run) == default_text.PLAIN
    other = trained("Only this is known.\n" * 200)  # its characters are too few for the sentence
    shutil.rmtree(tmp_path / "cache")
    assert set(text_of(other)) <= set("Only this is known.\n")


def test_a_corpus_without_sentences(trained):
    assert text_of(trained("0123456789 " * 300 + default_text.PLAIN)) == default_text.PLAIN


def words(text, **special):
    """A tokenizer of words, of which the others are [UNK]."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["[UNK]", *text.split()]))}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, **special)


def test_a_sentence_with_unknown_words_is_not_shown():
    known = words(default_text.PLAIN)
    assert default_text.plain(known, 64, known.prompt) == default_text.PLAIN
    assert default_text.plain(known, 5, known.prompt) is None
    unknown = words(default_text.PLAIN.replace("street", "road"))
    assert default_text.plain(unknown, 64, unknown.prompt) is None


def test_a_masked_model_gets_a_masked_word():
    text = default_text.MASKED.format(mask="[MASK]")
    tokenizer = words(text, mask=1 + text.split().index("[MASK]"))
    assert default_text.plain(tokenizer, 64, tokenizer.with_special_tokens) == text
    assert "[MASK]" in text
