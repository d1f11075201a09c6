"""Corpora and batches."""

import hashlib

import numpy as np
import pytest

from headway.data import batches, corpora


def test_the_manual_is_on_the_machine():
    text = corpora.read()
    assert len(text) > 300_000
    assert "lambda" in text
    assert text == corpora.read("manual")


def test_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.md").write_text("first")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert corpora.read(str(tmp_path)) == "first\n\nsecond"
    assert corpora.read(str(tmp_path / "b.txt")) == "second"


def test_a_byte_order_mark_is_not_text(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes("\ufeffa\ufeff cat\n".encode())
    assert corpora.read(str(tmp_path / "a.txt")) == "a\ufeff cat\n"
    assert corpora.read(str(tmp_path)) == "a\ufeff cat\n\n\na\ufeff cat\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "available: manual, shakespeare, verdict"),
        (b"", "has no text"),
        (b" \n", "has no text"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_bad_texts_are_named(tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"text\.txt.*{message}|{message}.*text\.txt"):
        corpora.read(str(file))


def test_a_folder_without_text_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no text files"):
        corpora.read(str(tmp_path))


TOKENS = np.arange(100, 160)


def test_a_batch_is_a_function_of_seed_and_step():
    def make(**changes):
        return batches.batch(TOKENS, **{"seed": 1, "step": 2, "size": 4, "context": 8, **changes})

    state = np.random.get_state()[1].copy()
    inputs, targets = make()
    assert np.array_equal(inputs, make()[0])
    assert not np.array_equal(inputs, make(step=3)[0])
    assert not np.array_equal(inputs, make(seed=2)[0])
    assert np.array_equal(np.random.get_state()[1], state)
    assert inputs.shape == (4, 8)
    assert np.array_equal(targets, inputs + 1)  # as the tokens count up


def test_every_window_can_be_drawn_and_none_leaves_the_tokens():
    inputs, targets = batches.batch(TOKENS, seed=0, step=0, size=3000, context=8)
    assert set(inputs[:, 0]) == set(range(100, 152))
    assert targets.max() == 159


def test_the_evaluation_is_always_the_same_windows_from_first_to_last():
    inputs, targets = batches.evaluation(TOKENS, 8, most=100)
    assert inputs.ravel().tolist() == list(range(100, 156))
    assert np.array_equal(targets, inputs + 1)
    few, _ = batches.evaluation(TOKENS, 8, most=3)
    assert few[:, 0].tolist() == [100, 124, 148]


def test_split_keeps_the_parts_apart_and_refuses_too_little():
    train, held_out = batches.split(TOKENS, 4)
    assert np.array_equal(np.concatenate([train, held_out]), TOKENS)
    assert len(held_out) == 6
    batches.split(TOKENS, 29)
    with pytest.raises(ValueError, match="60 tokens, too few for a context of 30, which needs 62"):
        batches.split(TOKENS, 30)


@pytest.fixture
def a_public_text(monkeypatch, tmp_path):
    """A short text that replaces Shakespeare's."""
    content = b"To be, or not to be\n" * 3
    public = corpora.Public(
        (tmp_path / "home").as_uri(), len(content), hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setattr(corpora, "PUBLIC", {"shakespeare": public})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return content, tmp_path


def test_a_public_text_is_fetched_once_and_kept(a_public_text):
    content, folder = a_public_text
    (folder / "home").write_bytes(content)
    assert corpora.read("shakespeare") == content.decode()
    (folder / "home").unlink()
    assert corpora.read("shakespeare") == content.decode()
    kept = folder / "cache" / "headway" / "texts" / "shakespeare.txt"
    kept.write_bytes(b"x" * len(content))  # damaged: not taken
    with pytest.raises(OSError, match=r"cannot download.*HEADWAY_DATA"):
        corpora.read("shakespeare")


def test_a_public_text_is_found_by_its_content_when_offline(a_public_text, monkeypatch):
    content, folder = a_public_text
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data" / "shakespeare.txt").write_bytes(b"y" * len(content))  # the name alone
    monkeypatch.setenv("HEADWAY_DATA", str(folder / "data"))
    with pytest.raises(OSError, match="cannot download"):
        corpora.read("shakespeare")
    (folder / "data" / "deep" / "any name").write_bytes(content)
    assert corpora.read("shakespeare") == content.decode()


def test_something_else_from_the_public_home_is_refused(a_public_text):
    content, folder = a_public_text
    (folder / "home").write_bytes(content[:-1] + b"!")
    with pytest.raises(OSError, match="SHA-256 is not that of"):
        corpora.read("shakespeare")
    assert not list((folder / "cache").rglob("*.txt"))


def test_a_misspelt_corpus_is_named():
    with pytest.raises(ValueError, match="did you mean 'shakespeare'"):
        corpora.read("shakespear")
