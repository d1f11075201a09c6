"""In a notebook a trace shows itself, and nobody has to ask."""

import subprocess
import sys

CELL = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
import numpy as np, headway
queries = np.eye(4)[None]
with headway.trace() as steps:
    headway.attend(queries, queries, queries, causal=True, kernel="plain")
html = shell.display_formatter.format(steps)[0]["text/html"]
print(html[:15], "explore/main.js" in html, "torch" in __import__("sys").modules)
assert "text/html" not in shell.display_formatter.format(3)[0]
"""


def test_a_trace_is_displayed_as_the_page_and_loads_no_engine():
    done = subprocess.run(
        [sys.executable, "-c", CELL], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["<iframe", "srcdoc=", "True", "False"]
