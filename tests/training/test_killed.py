"""Killed at any moment: what remains is the old or the new checkpoint, byte for byte."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from headway.training import checkpoints

SCRIPT = Path(__file__).parent / "killed.py"
save = runpy.run_path(str(SCRIPT))["save"]


def content(checkpoint):
    return {file.name: file.read_bytes() for file in checkpoint.iterdir()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, SCRIPT, root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the steps' checkpoints are when nobody is killed."""
    folder = tmp_path_factory.mktemp("expected")
    for step in (1, 2, 3):
        save(folder / str(step), step)
    return {path.name: content(path) for path in folder.glob("*/step-*")}


@pytest.mark.parametrize(("kind", "least"), [("calls", 20), ("moment", 100)])
def test_what_remains_is_whole_and_saving_goes_on(root, expected, kind, least):
    folders = sorted(root.glob(f"{kind}-*"))
    assert len(folders) >= least
    ends = set()
    for folder in folders:
        result = checkpoints.complete(folder)
        for checkpoint in result:
            assert content(checkpoint) == expected[checkpoint.name], folder
        latest = checkpoints.latest(folder)
        assert latest.name in ("step-000002", "step-000003")
        assert len(result) >= 2
        ends.add(latest.name)
        for part in ("model", "optimizer"):
            checkpoints.load(latest, part)
        save(folder, 4)
        assert {path.name for path in folder.iterdir()} == {latest.name, "step-000004"}
    assert ends == {"step-000002", "step-000003"}
