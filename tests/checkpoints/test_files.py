"""Checkpoints: whole or not there, equal content in equal bytes."""

import numpy as np
import pytest

from headway.checkpoints import files

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.ones(4, np.float32)}


def test_comes_back_and_equal_content_is_equal_bytes(tmp_path):
    one = files.save(tmp_path / "x", 3, TENSORS, {"step": 3, "loss": 1.5})
    other = files.save(tmp_path / "y", 3, dict(reversed(TENSORS.items())), {"loss": 1.5, "step": 3})
    for name, tensor in files.load(one).items():
        assert np.array_equal(tensor, TENSORS[name])
    assert [(f / "model.safetensors").read_bytes() for f in (one, other)].count(
        (one / "model.safetensors").read_bytes()
    ) == 2


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path):
    left = tmp_path / ".writing-step-000003"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="no checkpoint"):
        files.latest(tmp_path)
    saved = files.save(tmp_path, 3, TENSORS, {})
    assert files.latest(tmp_path) == saved
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003"]


def test_a_checkpoint_is_never_overwritten(tmp_path):
    saved = files.save(tmp_path, 3, TENSORS, {})
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match="not empty"):
        files.save(tmp_path, 3, {"a": np.zeros(1, np.float32)}, {})
    assert (saved / "model.safetensors").read_bytes() == before


def test_latest_is_the_last_step(tmp_path):
    for step in (999_999, 1_000_000, 200):
        last = files.save(tmp_path, step, TENSORS, {})
    assert files.latest(tmp_path).name == "step-1000000"
    assert last.name == "step-000200"


def test_a_damaged_file_is_named(tmp_path):
    saved = files.save(tmp_path, 1, TENSORS, {}) / "model.safetensors"
    saved.write_bytes(saved.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        files.load(saved.parent)
