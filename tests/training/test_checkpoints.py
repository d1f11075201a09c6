"""Checkpoints: whole or not there, equal content in equal bytes."""

import subprocess

import numpy as np
import pytest

from headway.training import checkpoints

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.ones(4, np.float32)}


def test_comes_back_and_equal_content_is_equal_bytes(tmp_path):
    one = checkpoints.save(tmp_path / "x", 3, {"model": TENSORS}, {"step": 3, "loss": 1.5})
    turned = {"model": dict(reversed(TENSORS.items()))}
    other = checkpoints.save(tmp_path / "y", 3, turned, {"loss": 1.5, "step": 3})
    tensors, about = checkpoints.load(one)
    assert about == {"step": 3, "loss": 1.5}
    for name, tensor in tensors.items():
        assert np.array_equal(tensor, TENSORS[name])
    for file in sorted(one.iterdir()):
        assert file.read_bytes() == (other / file.name).read_bytes()
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=one, capture_output=True).returncode == 0


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path):
    left = tmp_path / ".writing-step-000003"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoints.latest(tmp_path)
    saved = checkpoints.save(tmp_path, 3, {"model": TENSORS}, {})
    assert checkpoints.latest(tmp_path) == saved
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003"]


def test_a_checkpoint_is_never_overwritten(tmp_path):
    saved = checkpoints.save(tmp_path, 3, {"model": TENSORS}, {})
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*: Directory not empty"):
        checkpoints.save(tmp_path, 3, {"model": {"a": np.zeros(1, np.float32)}}, {})
    assert (saved / "model.safetensors").read_bytes() == before


def test_latest_is_the_last_step(tmp_path):
    for step in (999_999, 1_000_000, 200):
        last = checkpoints.save(tmp_path, step, {"model": TENSORS}, {})
    assert checkpoints.latest(tmp_path).name == "step-1000000"
    assert last.name == "step-000200"


def cut(file):
    file.write_bytes(file.read_bytes()[:-10])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda file: file.unlink()])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "SHA256SUMS"])
def test_whatever_is_damaged_is_named_and_the_one_before_offered(tmp_path, name, damage):
    parts = {"model": TENSORS, "optimizer": TENSORS}
    for step in (1, 2):
        saved = checkpoints.save(tmp_path, step, parts, {})
    damage(saved / name)
    message = r"step-000002.*is damaged .*remove the folder step-000002 to resume from step-000001"
    with pytest.raises(ValueError, match=message):
        _ = [checkpoints.load(saved, part) for part in parts]
    damage(tmp_path / "step-000001" / name)
    with pytest.raises(ValueError, match=r"is damaged .* no earlier checkpoint"):
        _ = [checkpoints.load(tmp_path / "step-000001", part) for part in parts]


def test_the_last_ones_are_kept(tmp_path):
    for step in range(5):
        checkpoints.save(tmp_path, step, {"model": TENSORS}, {})
    (tmp_path / ".removing-step-000000").mkdir()  # of a process that was killed
    checkpoints.keep(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000004"]
