"""Several processes: the same batches and losses, checkpoints for any number, the work divided."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch.distributed.checkpoint as dcp
from safetensors import safe_open

from headway.training import checkpoints

SCRIPT, KILLED = (Path(__file__).with_name(f"{name}.py") for name in ("several", "several_killed"))
_NAMES = runpy.run_path(str(SCRIPT))
CASES, COMPILED, trained = _NAMES["CASES"], _NAMES["COMPILED"], _NAMES["trained"]
MAIN = ("muon", "adamw")  # the other cases are tested in `make test-all`
OTHERS = [case for case in CASES if case not in MAIN]
# Of the modules that several tests import.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.xdist_group("several processes")  # one worker, which starts them once
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def launched(count, folder, *cases):
    """Run cases in several processes; return their measurements."""
    command = [*TORCHRUN, str(count), str(SCRIPT), str(folder), *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return {case: json.loads((folder / f"{case}.json").read_text()) for case in cases}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def alone(folder):
    """The measurements of one process, by case."""
    return {case: trained(folder / "1" / case, of) for case, of in CASES.items()}


@pytest.fixture(scope="module")
def of_three(folder):
    (folder / "3").mkdir()
    stopped = ("stop 1", "stop 2", "stop 3", "resume 3")
    return launched(3, folder / "3", *MAIN, *stopped, "communication", "muon error", "full disk")


@pytest.fixture(scope="module")
def of_two(folder, of_three):
    (folder / "2").mkdir()
    shutil.copytree(folder / "3" / "stop 2", folder / "2" / "stop 2")
    return launched(2, folder / "2", *MAIN, "muon error", "resume 2")


@pytest.fixture(scope="module")
def others_of_three(folder, of_three):
    return launched(3, folder / "3", *OTHERS)


def require_same(one, other, rel):
    """The same losses, norms and validation losses, up to rounding."""
    assert len(one["steps"]) == len(other["steps"])
    for a, b in zip(one["steps"], other["steps"], strict=True):
        assert (a["step"], a["tokens"]) == (b["step"], b["tokens"])
        assert a["loss"] == pytest.approx(b["loss"], rel=rel), a["step"]
        assert (a["validation"] is None) == (b["validation"] is None)
        if a["validation"] is not None:
            assert a["validation"] == pytest.approx(b["validation"], rel=rel), a["step"]
    first, expected = one["steps"][0], other["steps"][0]
    assert first["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=rel)


def content(run):
    """All tensors of the last checkpoint, by part and name."""
    last = checkpoints.latest(run / "checkpoints")
    parts = {part: checkpoints.load(last, part)[0] for part in ("model", "optimizer")}
    return {f"{part} {name}": x for part, tensors in parts.items() for name, x in tensors.items()}


def require_equal_runs(case, one, result, folder):
    """The same losses and the same end; each process holds a third of the parameters."""
    require_same(result, one, 1e-3 if case == "bfloat16" else 2e-5)
    assert result["all"] / 3 <= result["held"] < result["all"] / 2  # not all rows can be divided
    expected, got = content(folder / "1" / case), content(folder / "3" / case)
    assert got.keys() == expected.keys()
    if case != "bfloat16":
        for name, array in got.items():
            # The gradient of the keys' biases is 0, which AdamW enlarges when it is rounded.
            np.testing.assert_allclose(array, expected[name], 2e-3, 1e-5, err_msg=name)


@pytest.mark.parametrize("case", MAIN)
def test_three_processes_have_the_losses_of_one(folder, alone, of_three, case):
    require_equal_runs(case, alone[case], of_three[case], folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_three_processes_train_every_kind_of_model(folder, alone, others_of_three, case):
    require_equal_runs(case, alone[case], others_of_three[case], folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", MAIN)
def test_two_processes_have_the_losses_of_one(alone, of_two, case):
    require_same(of_two[case], alone[case], 2e-5)
    require_divided(of_two["muon error"])


@pytest.mark.slow
def test_four_processes_have_the_losses_of_one(folder, alone):
    (folder / "4").mkdir()
    for case, result in launched(4, folder / "4", *CASES).items():
        require_same(result, alone[case], 1e-3 if case == "bfloat16" else 2e-5)


@pytest.mark.slow
def test_blocks_are_compiled_one_by_one(folder):
    (folder / "compiled").mkdir()
    (compiled,) = launched(2, folder / "compiled", "compiled").values()
    plain = replace(COMPILED, training=replace(COMPILED.training, compile=False))
    require_same(compiled, trained(folder / "not compiled", plain), 2e-5)


def require_divided(result):
    """Muon's updates are those of one process; each matrix is orthogonalized once."""
    assert result["error"] < 1e-6
    assert sorted(chain(*result["owned"])) == sorted(result["matrices"])
    shares = [len(names) for names in result["owned"]]
    assert max(shares) - min(shares) <= 1


def test_muon_is_divided_and_equal(of_three):
    require_divided(of_three["muon error"])


def test_gradients_are_summed_once_per_step(of_three):
    """Two blocks and the rest; four micro-batches."""
    sums = {n: c for n, c in of_three["communication"].items() if "reduce_scatter" in n}
    assert sum(sums.values()) == 3, of_three["communication"]


def test_a_checkpoint_can_be_resumed_with_the_same_number_or_one(folder, alone, of_three):
    again = of_three["resume 3"]
    assert again["steps"] == of_three["muon"]["steps"]  # bit for bit
    assert again["differences"] == []
    for name, array in content(folder / "3" / "stop 3").items():
        assert np.array_equal(array, content(folder / "3" / "muon")[name]), name
    one = trained(folder / "3" / "stop 1", CASES["muon"])
    require_same(one, alone["muon"], 2e-5)
    assert "processes was 3, is 1" in one["differences"]


@pytest.mark.slow
def test_a_checkpoint_can_be_resumed_with_another_number(alone, of_two):
    require_same(of_two["resume 2"], alone["muon"], 2e-5)
    assert "processes was 3, is 2" in of_two["resume 2"]["differences"]


def test_the_files_are_what_the_documentation_says(folder, of_three):
    last = checkpoints.latest(folder / "3" / "muon" / "checkpoints")
    names = [
        f"{part}-0000{n}-of-00003.safetensors" for part in ("model", "optimizer") for n in (1, 2, 3)
    ]
    assert sorted(path.name for path in last.iterdir()) == ["SHA256SUMS", *names]
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=last, capture_output=True).returncode == 0
    stored, _ = checkpoints.load(last)
    with safe_open(last / names[1], "numpy") as second:
        rows = second.get_tensor("embedding.weight")
        assert rows.shape[0] == -(-stored["embedding.weight"].shape[0] // 3)
    # PyTorch's own reader reads it.
    metadata = dcp.HuggingFaceStorageReader(str(last)).read_metadata().state_dict_metadata
    assert {name: tuple(metadata[name].size) for name in stored} == {
        name: array.shape for name, array in stored.items()
    }


def test_a_process_that_cannot_write_stops_all_and_loses_nothing(of_three):
    result = of_three["full disk"]
    for error in result["errors"]:
        assert "cannot write the checkpoint" in error
        assert "the earlier checkpoints are intact" in error
    assert result["left"] == ["step-000000", "step-000002"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_processes_that_are_killed_at_sixty_moments_lose_nothing(tmp_path):
    """The script compares the checkpoints; see there."""
    command = [sys.executable, KILLED, tmp_path, "60"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report) == 60
    assert all(-9 in killed["codes"] for killed in report)
    assert max(killed["seconds"] for killed in report) < 60  # until all have ended
    assert {killed["killed"] for killed in report} == {1, 3}
    assert max(killed["step"] for killed in report) > 10


def test_the_others_do_not_wait_for_a_process_that_hangs(tmp_path):
    """They wait for four seconds here."""
    command = [sys.executable, KILLED, tmp_path, "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["codes"] == [1, 1]
    assert report["seconds"] < 30
