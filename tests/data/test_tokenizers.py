"""Text to tokens and back, exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.data.tokenizers import Tokenizer

PAIRS = Tokenizer.byte_pairs("the cat sat on the mat\n" * 50, 300)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


BYTES = Tokenizer.utf8_bytes()


@given(TEXTS)
def test_byte_pairs_give_any_text_back(text):
    assert PAIRS.decode(PAIRS.encode(text)) == text


@given(TEXTS)
def test_bytes_give_any_text_back_and_are_their_numbers(text):
    tokens = BYTES.encode(text)
    assert bytes(tokens.tolist()) == text.encode()
    assert BYTES.decode(tokens) == text
    assert BYTES.vocabulary == 256


@given(TEXTS)
def test_the_bytes_of_tokens_together_are_the_text(text):
    for tokenizer in (PAIRS, BYTES, Tokenizer.characters(text)):
        result = b"".join(tokenizer.token_bytes(int(token)) for token in tokenizer.encode(text))
        assert result == text.encode()


def test_a_number_that_is_no_token_is_named():
    with pytest.raises(ValueError, match="token 999 is not in the vocabulary"):
        PAIRS.token_bytes(999)


@given(TEXTS)
def test_a_stream_gives_whole_characters_and_all_of_them(text):
    for tokenizer in (PAIRS, BYTES):
        stream = tokenizer.stream()
        pieces = [stream.add(int(token)) for token in tokenizer.encode(text)]
        assert "".join(pieces) + stream.rest() == text
        assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("a ca dog cat more", ["cat"], "a ca dog "),
        ("a cacat", ["cat"], "a ca"),
        ("one\n\ntwo", ["\n\n", "tw"], "one"),
        ("ends in ca", ["cat"], "ends in ca"),
        ("aéa", ["é"], "a"),
    ],
)
def test_a_stop_string_ends_the_stream_and_nothing_of_it_is_given(text, stop, wanted):
    for tokenizer in (PAIRS, BYTES, Tokenizer.characters(text)):
        stream, given_so_far = tokenizer.stream(stop), ""
        for token in tokenizer.encode(text):
            given_so_far += stream.add(int(token))
            assert wanted.startswith(given_so_far)
        assert given_so_far + stream.rest() == wanted
        assert stream.ended == any(item in text for item in stop)
    with pytest.raises(ValueError, match="stop string must have"):
        PAIRS.stream([""])


def test_pieces_are_what_the_whole_would_be():
    assert len(list(BYTES.encode_pieces("x\ny" * 99_999))) > 4
    for text in (
        ("the  cat\nsat\n\n on\tthe mat \n" * 3 + "x\ny" * 9) * 2000,
        ("the cat sat on the mat " * 3000 + "\n") * 3 + "the\ncat",
    ):
        _are_the_whole(text)


def _are_the_whole(text):
    for tokenizer in (PAIRS, BYTES, Tokenizer.characters(text)):
        pieces = list(tokenizer.encode_pieces(text))
        complete = tokenizer._backend.encode(text, add_special_tokens=False).ids
        assert np.concatenate([piece for piece, _ in pieces]).tolist() == complete
        assert sum(characters for _, characters in pieces) == len(text)


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    PAIRS.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint == PAIRS.fingerprint
    assert PAIRS.fingerprint != BYTES.fingerprint


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
    with pytest.raises(ValueError, match="does not know the characters 'x', 'ü'"):
        Tokenizer.characters("abc").encode("aüxb")


def test_a_lone_surrogate_is_refused():
    for tokenizer in (PAIRS, Tokenizer.characters("abc")):
        with pytest.raises(ValueError, match="invalid Unicode"):
            tokenizer.encode("a\ud800")


@pytest.mark.parametrize("tokenizer", [PAIRS, Tokenizer.characters("the cat\n")])
def test_save_and_load(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.encode("the cat").tolist() == tokenizer.encode("the cat").tolist()
    with pytest.raises(ValueError, match="does not know") if tokenizer is not PAIRS else _nothing():
        again.encode("ü")


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a valid tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="256"):
        Tokenizer.byte_pairs("text", 255)
