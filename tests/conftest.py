"""Shapes are checked in every test: jaxtyping's annotations, by beartype, on import."""

import os
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import jax
import pytest
import torch
from jaxtyping import install_import_hook

from pages import CHROMIUM, watched

# The tests use neither the cache nor the data of the user.
_cache = tempfile.TemporaryDirectory(prefix="headway-tests-")  # deleted with this process
os.environ["XDG_CACHE_HOME"] = _cache.name
os.environ.pop("HEADWAY_DATA", None)
# Tests send these signals, which are ignored if the tests are started by a shell in the background
# or by nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# All packages with shapes in their annotations.
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
# Programs that JAX compiled are shared by all tests, workers and child processes.
for name, value in (
    ("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")),
    ("jax_persistent_cache_min_compile_time_secs", 0.0),
    ("jax_persistent_cache_min_entry_size_bytes", -1),
):
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)


def pytest_configure(config):
    """Spend less time in XLA's optimizer, except in `make test-all`."""
    if config.option.markexpr == "not slow":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)


from headway.training import memory  # noqa: E402 - after the hook

# A process that never returns memory cannot measure the memory of an operation.
_keep = memory.keep
memory.keep = lambda of_any_size=False: None if of_any_size else _keep()

torch.set_num_threads(1)  # tests run in parallel


@pytest.fixture(autouse=True)
def _one_thread():
    """A resumed run sets the number of threads that it had before."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


hypothesis.settings.register_profile("headway", deadline=None, derandomize=True, max_examples=8)
hypothesis.settings.load_profile("headway")


def pytest_terminal_summary(terminalreporter):
    if CHROMIUM is None:
        terminalreporter.section("THE BROWSER TESTS DID NOT RUN", sep="!", red=True)
        terminalreporter.line("Chromium is missing: apt-get install chromium-headless-shell")
    if find_spec("triton") is None:
        terminalreporter.section("THE TESTS OF TRITON DID NOT RUN", sep="!", red=True)
        terminalreporter.line("triton does not install here")


@pytest.fixture(scope="module")  # while it is open no other event loop can run in its thread
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is missing: apt-get install chromium-headless-shell")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page that fails the test when a script of it fails or a request leaves the machine."""
    with watched(browser) as opened:
        yield opened
