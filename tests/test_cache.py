"""The cache folder."""

import warnings

import numpy as np
import pytest

from headway import cache
from headway.data import batches, tokenizers


def test_a_folder_that_is_not_writable_is_reported_once_and_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tokenizer = tokenizers.tokenizer_for("to be", "char", None)
    with pytest.warns(UserWarning, match="is not writable .Not a directory.*Set XDG_CACHE_HOME"):
        tokens = batches.prepared("to be", tokenizer)
    np.testing.assert_array_equal(tokens, tokenizer.encode("to be"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert batches.prepared("to be", tokenizer) is not None
        assert cache.writable("tokens") == cache.writable("tokens")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_file_in_a_folder_that_is_not_writable_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (cache.folder("texts") / "a.txt").touch()

    def fail(**arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache.tempfile, "TemporaryFile", fail)
    assert cache.writable("texts", "a.txt") == cache.folder("texts") / "a.txt"
    with pytest.warns(UserWarning, match="not writable .Permission denied"):
        assert cache.writable("texts", "b.txt").parent != cache.folder("texts")
