"""The .bin files of nanoGPT and llm.c."""

import numpy as np
import pytest

from headway.data import sources
from headway.data.tokenizers import Tokenizer

BYTES = Tokenizer.utf8_bytes()
TRAIN, VALIDATION = np.arange(200) % 256, np.arange(40) % 7


def header(magic, count):
    return np.array([magic, 1, count, *[0] * 253], "<i4").tobytes()


def write(folder, train, validation):
    (folder / "train.bin").write_bytes(train)
    (folder / "val.bin").write_bytes(validation)
    return sources.read(str(folder))


def split(source, context=8):
    return source.split(BYTES, context, lambda more, total: None)


@pytest.mark.parametrize(
    ("magic", "kind"), [(None, "<u2"), (20240520, "<u2"), (20240801, "<u4")], ids=str
)
def test_they_are_read_as_they_are(tmp_path, magic, kind):
    parts = []
    for tokens in (TRAIN, VALIDATION):
        before = b"" if magic is None else header(magic, len(tokens))
        parts.append(before + tokens.astype(kind).tobytes())
    train, validation, _ = split(write(tmp_path, *parts))
    assert np.array_equal(train[:], TRAIN)
    assert np.array_equal(validation[:], VALIDATION)


def test_several_files_are_one_text(tmp_path):
    for name, part in zip("ab", np.split(TRAIN, 2), strict=True):
        (tmp_path / f"text_train_{name}.bin").write_bytes(part.astype("<u2").tobytes())
    (tmp_path / "text_val_0.bin").write_bytes(VALIDATION.astype("<u2").tobytes())
    assert np.array_equal(split(sources.read(str(tmp_path)))[0][:], TRAIN)


def test_mistakes_are_named(tmp_path):
    few, many = (np.arange(n).astype("<u2").tobytes() for n in (8, 300))
    source = write(tmp_path, many, few)
    for _ in range(2):  # the maximum is in the cache
        with pytest.raises(ValueError, match=r"train\.bin has the token 299.*has 256 tokens"):
            split(source)
    with pytest.raises(ValueError, match=r"for val .* have 8 tokens, too few for a context of 8"):
        split(write(tmp_path, few * 2, few))
    with pytest.raises(ValueError, match=r"val\.bin is damaged: it has 15 bytes, expected 14"):
        split(write(tmp_path, few * 2, few[:-1]))
    with pytest.raises(ValueError, match="it has 1,038 bytes, expected 1,040"):
        split(write(tmp_path, few * 2, header(20240520, 8) + few[:-2]))
    for kind in ("bpe", "char"):
        with pytest.raises(ValueError, match=r"--tokenizer with the path .*meta\.pkl is not read"):
            source.tokenizer(kind, None)
    with pytest.raises(ValueError, match=r"is a file of tokens: give its folder"):
        sources.read(str(tmp_path / "train.bin"))
