"""Run a command of `headway` in the process of the tests."""

import io
import os
import signal
import sys
import threading
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest.mock import patch

from headway.cli.main import main


def run(folder, *words, asked="", interrupt=lambda: False):
    """Run a command in this process, because importing PyTorch takes longer than most commands.

    interrupt: a condition; when it becomes true, Ctrl-C is pressed.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "argv", ["headway", *words]),
        patch.object(sys, "stdin", io.StringIO(asked)),
        patch.object(sys, "path", [*sys.path]),  # commands add the folders of user modules
        _same_cores(),
        _ctrl_c(interrupt),
    ):
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code
    return CompletedProcess(words, code, out.getvalue(), err.getvalue())


@contextmanager
def _same_cores():
    """Undo `headway bench --threads`, which limits this process to some cores."""
    cores = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def _ctrl_c(condition):
    ended = threading.Event()

    def press():
        while not ended.wait(0.02):
            if condition():
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def headway(folder, *words, rc=0, asked="", interrupt=lambda: False):
    """Run a command that must exit with status `rc`."""
    done = run(folder, *words, asked=asked, interrupt=interrupt)
    assert done.returncode == rc, done.stderr
    return done
