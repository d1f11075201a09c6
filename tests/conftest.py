"""Shapes are checked in every test: jaxtyping's annotations, by beartype, on import."""

import os
import shutil
import tempfile
from importlib.util import find_spec

import hypothesis
import jax
import pytest
import torch
from jaxtyping import install_import_hook

# Nothing of the person's own: neither what they fetched nor what they prepared.
_cache = tempfile.TemporaryDirectory(prefix="headway-tests-")  # gone with this process
os.environ["XDG_CACHE_HOME"] = _cache.name
os.environ.pop("HEADWAY_DATA", None)

# Where the shapes are. (The reference is loops over plain NumPy arrays, without shape strings.)
install_import_hook(
    [
        "headway.attention",
        "headway.ladder",
        "headway.torch",
        "headway.jax",
        "headway.data",
        "headway.training.muon",
    ],
    "beartype.beartype",
)
jax.config.update("jax_enable_x64", True)

from headway.training import memory  # noqa: E402 - after the hook

# A process that keeps all its memory can no longer measure what something takes.
_keep = memory.keep
memory.keep = lambda of_any_size=False: None if of_any_size else _keep()

torch.set_num_threads(1)  # the tests run side by side


@pytest.fixture(autouse=True)
def _one_thread():
    """A run that is resumed takes as many threads as it had."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


hypothesis.settings.register_profile("headway", deadline=None, derandomize=True, max_examples=8)
hypothesis.settings.load_profile("headway")


def pytest_terminal_summary(terminalreporter):
    if shutil.which("chromium") is None:
        terminalreporter.section("THE BROWSER TESTS DID NOT RUN", sep="!", red=True)
        terminalreporter.line("Debian's chromium is missing: apt-get install chromium")
    if find_spec("triton") is None:
        terminalreporter.section("THE TESTS OF TRITON DID NOT RUN", sep="!", red=True)
        terminalreporter.line("triton does not install here")
