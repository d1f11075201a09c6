"""Training on several devices gives the same losses, with parameters copied or split."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sharded.py")


def test_one_two_and_four_devices_give_the_same_losses():
    command = [sys.executable, SCRIPT]
    layouts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert layouts.pop("devices") == 4
    alone = layouts.pop("1 copied")
    assert alone["losses"][0] > alone["losses"][-1] + 0.1
    for name, other in layouts.items():
        devices, layout = name.split()
        for key in ("losses", "norms", "weights"):
            assert other[key] == pytest.approx(alone[key], rel=2e-5), (name, key)
        validation = [(a, b) for a, b in zip(other["validation"], alone["validation"], strict=True)]
        assert [a is None for a, _ in validation] == [b is None for _, b in validation]
        assert all(a is None or a == pytest.approx(b, rel=1e-5) for a, b in validation)
        share = 1 / int(devices) if layout == "full" else 1.0
        assert other["share"] == {"weights": share, "momentum": share}
        assert other["device"] == ("cpu" if devices == "1" else f"{devices} cpu")
