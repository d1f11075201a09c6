"""Text to tokens and back, exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.tokenizers import Tokenizer

PAIRS = Tokenizer.byte_pairs("the cat sat on the mat\n" * 50, 300)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXTS)
def test_byte_pairs_give_any_text_back(text):
    assert PAIRS.decode(PAIRS.encode(text)) == text


@given(TEXTS)
def test_characters_give_their_own_text_back(text):
    tokenizer = Tokenizer.characters(text)
    assert tokenizer.vocabulary == len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)


def test_byte_pairs_learn_from_the_text():
    assert PAIRS.vocabulary <= 300
    assert len(PAIRS.encode("the cat")) < 7


def test_what_was_never_seen_is_named():
    with pytest.raises(ValueError, match="never saw 'x', 'ü'"):
        Tokenizer.characters("abc").encode("aüxb")


def test_a_lone_surrogate_is_refused():
    for tokenizer in (PAIRS, Tokenizer.characters("abc")):
        with pytest.raises(ValueError, match="no valid Unicode"):
            tokenizer.encode("a\ud800")


@pytest.mark.parametrize("tokenizer", [PAIRS, Tokenizer.characters("the cat\n")])
def test_save_and_load(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.encode("the cat").tolist() == tokenizer.encode("the cat").tolist()
    with pytest.raises(ValueError, match="never saw") if tokenizer is not PAIRS else _nothing():
        again.encode("ü")


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json holds no tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="256"):
        Tokenizer.byte_pairs("text", 255)
