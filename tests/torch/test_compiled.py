"""torch.compile, in a process of its own: shape checks would break its graphs."""

import subprocess
import sys
from pathlib import Path


def test_models_and_parts_compile_without_a_graph_break():
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script)], capture_output=True, text=True
    )
    assert done.stdout.endswith("compiled and held\n"), done.stderr[-3000:]
