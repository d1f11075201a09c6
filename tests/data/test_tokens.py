"""Tokens on disk: made once, whole, reused, and of the smallest kind that holds them."""

import numpy as np
import pytest

from headway import cache
from headway.data import batches
from headway.data.tokenizers import Tokenizer

TEXT = "It was the best of times,\nit was the worst of times.\n\n" * 5000  # several pieces


def test_they_are_made_once_and_mapped(monkeypatch):
    tokenizer, told = Tokenizer.characters(TEXT), []
    result = batches.prepared(TEXT, tokenizer, told.append)
    assert isinstance(result, np.memmap)
    assert result.dtype == np.uint16
    assert not result.flags.writeable
    assert tokenizer.decode(result) == TEXT
    assert sum(told) == len(TEXT)
    assert len(told) > 3

    def refuse(text):
        raise AssertionError("made again")

    monkeypatch.setattr(Tokenizer, "encode_pieces", lambda self, text: refuse(text))
    assert np.array_equal(batches.prepared(TEXT, tokenizer), result)


def test_another_text_or_tokenizer_is_another_file():
    one = batches.prepared("abc" * 10, Tokenizer.characters("abc"))
    other = batches.prepared("abc" * 10, Tokenizer.characters("abcd"))
    third = batches.prepared("abc" * 11, Tokenizer.characters("abc"))
    assert len({file.filename for file in (one, other, third)}) == 3


def test_a_large_vocabulary_takes_four_bytes():
    many = "".join(map(chr, range(0x10000, 0x10000 + 66_000)))
    result = batches.prepared(many, Tokenizer.characters(many))
    assert result.dtype == np.uint32
    assert result.max() == 65_999


def test_what_was_cut_off_is_not_found(monkeypatch):
    text = "cut off " * 20
    tokenizer = Tokenizer.characters(text)
    before = set(cache.folder("tokens").iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(np, "concatenate", lambda pieces: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            batches.prepared(text, tokenizer)
    assert set(cache.folder("tokens").iterdir()) == before
    assert tokenizer.decode(batches.prepared(text, tokenizer)) == text
