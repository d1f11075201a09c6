"""torch.compile, in a separate process: the shape checks of the tests would break its graphs."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compiled.py")


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_models_and_parts_compile_without_a_graph_break(backend):
    command = [sys.executable, "-W", "error::UserWarning", SCRIPT, backend]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.endswith("all compiled\n"), done.stderr[-3000:]
