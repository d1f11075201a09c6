"""The checks as tests of a test suite."""

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


def test_there_is_one_test_per_check(tmp_path):
    (tmp_path / "test_attention.py").write_text(SUITE)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "test_attention.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "test_wrong[scale]" in result.stdout
    assert "the scale is applied twice" in result.stdout
    assert "look at  test_attention.py:9: return" in result.stdout
    assert "not applicable: the feature 'window' is not declared" in result.stdout
    assert "3 failed" in result.stdout  # formula, scale and sharp, of `wrong`
    assert "test_right[" not in "".join(
        line for line in result.stdout.split("\n") if "FAILED" in line
    )
