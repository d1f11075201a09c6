"""A command of `headway`, for the tests of several verbs."""

import io
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest.mock import patch

from headway.cli.main import main


class Said(NamedTuple):
    """What a command left."""

    stdout: str
    stderr: str


def headway(folder, *words, rc=0, asked=""):
    """Run a command in this process: to load PyTorch for each takes longer than all else."""
    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "argv", ["headway", *words]),
        patch.object(sys, "stdin", io.StringIO(asked)),
    ):
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code
    assert code == rc, err.getvalue()
    return Said(out.getvalue(), err.getvalue())
