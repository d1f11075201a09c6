"""Runs to open the page on."""

import pytest
import torch

import headway
from gpts import MODERN, gpt_config
from headway.data.tokenizers import Tokenizer
from headway.torch.weights import build, to_arrays
from headway.training import checkpoints
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

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
