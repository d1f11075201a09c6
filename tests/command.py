"""A command of `headway`, run in the process of the tests."""

import io
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest.mock import patch

from headway.cli.main import main


def run(folder, *words, asked=""):
    """Run a command in this process, because loading PyTorch takes longer than the command."""
    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "argv", ["headway", *words]),
        patch.object(sys, "stdin", io.StringIO(asked)),
        patch.object(sys, "path", [*sys.path]),  # commands add the folders of user modules
    ):
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code
    return CompletedProcess(words, code, out.getvalue(), err.getvalue())


def headway(folder, *words, rc=0, asked=""):
    """Run a command that must exit with status `rc`."""
    done = run(folder, *words, asked=asked)
    assert done.returncode == rc, done.stderr
    return done
