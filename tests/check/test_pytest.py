"""The doctor in somebody else's test suite."""

import subprocess
import sys

SUITE = """
import torch
from headway.check.pytest import checks

def right(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v

def wrong(q, k, v):
    return (q @ k.mT / q.shape[-1]).softmax(-1) @ v

test_right = checks(right, kind="qkv", engine="torch")
test_wrong = checks(wrong, kind="qkv", engine="torch")
"""


def test_one_test_a_check(tmp_path):
    (tmp_path / "test_mine.py").write_text(SUITE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "test_mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "test_wrong[scale]" in done.stdout
    assert "the scale is applied twice" in done.stdout
    assert "look at  test_mine.py:9: return" in done.stdout
    assert "not applicable: the feature 'window' is not declared" in done.stdout
    assert "2 failed" in done.stdout  # scale and sharp, of wrong alone
    assert "test_right[" not in "".join(
        line for line in done.stdout.split("\n") if "FAILED" in line
    )
