"""A browser for the page, and runs to open it on."""

import pytest
import torch

import headway
from gpts import MODERN, gpt_config
from headway.data.tokenizers import Tokenizer
from headway.torch.weights import build, to_arrays
from headway.training import checkpoints
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig
from pages import CHROMIUM

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom.\n" * 40


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A trained model with two layers and four heads."""
    folder = tmp_path_factory.mktemp("explored")
    (folder / "text.txt").write_text(TEXT)
    sizes = {"context": 80, "width": 32, "layers": 2, "heads": 4, "steps": 20, "batch": 4}
    names = {"name": "tiny", "runs": str(folder), "tokenizer": "byte"}
    return headway.train(str(folder / "text.txt"), **names, **sizes)


def random_run(path, config):
    """A run that reads bytes, with random weights."""
    tokenizer = Tokenizer.utf8_bytes()
    names = ("next-token", "", "", "byte", tokenizer.fingerprint, None)
    of_run = RunConfig(*names, config, TrainingConfig())
    made = Run.create(path, of_run, tokenizer)
    torch.manual_seed(0)
    model = build(of_run)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    checkpoints.save(made.checkpoints, 0, {"model": to_arrays(model)}, {})
    return made


@pytest.fixture(scope="session")
def modern(tmp_path_factory):
    """A run with QK-norm, rotary positions and grouped heads, and random weights."""
    config = gpt_config(256, 12, 24, 2, 4, kv_heads=2, **MODERN)
    return random_run(tmp_path_factory.mktemp("modern") / "modern", config)


@pytest.fixture(scope="session")
def new_run(tmp_path_factory):
    """A function from a config to such a run."""
    return lambda config: random_run(tmp_path_factory.mktemp("random") / "random", config)


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
    # Without animations, which take a quarter of a second each.
    options = {"accept_downloads": True, "reduced_motion": "reduce"}
    context = browser.new_context(viewport={"width": 1280, "height": 860}, **options)
    opened = context.new_page()
    errors, requests = [], []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    yield opened
    context.close()
    assert errors == []
    inside = ("http://127.0.0.1:", "file:", "data:", "blob:", "about:")
    assert [url for url in requests if not url.startswith(inside)] == []
