"""The table of docs/models.md: how far our models are from those of transformers.

PYTHONPATH=tests/hf python -m equal_table
"""

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

import headway
from families import VARIANTS, their_model

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TEXT = np.random.default_rng(0).integers(3, 41, (2, 40))
TITLE = "| model | PyTorch | JAX |\n|---|---|---|\n"


def row(name):
    """The largest difference of the logits in float32, relative to the largest logit."""
    theirs = their_model(*VARIANTS[name])
    differences = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        theirs.save_pretrained(folder)
        expected = theirs(torch.tensor(TEXT)).logits.numpy()
        for engine, tokens in (("torch", torch.tensor(TEXT)), ("jax", TEXT)):
            model = headway.load(folder, engine, device="cpu").model
            output = np.asarray(model(tokens))
            differences.append(abs(output - expected).max() / abs(expected).max())
    return f"| {name} | {differences[0]:.0e} | {differences[1]:.0e} |\n"


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    table = TITLE + "".join(map(row, VARIANTS))
    versions = (
        f"transformers {transformers.__version__}, torch {torch.__version__}, in float32.\n\n"
    )
    mark = "<!-- equal: {} -->\n"
    new = mark.format("begin") + versions + table + mark.format("end")
    pattern = re.escape(mark.format("begin")) + ".*?" + re.escape(mark.format("end"))
    PAGE.write_text(re.sub(pattern, lambda _: new, PAGE.read_text(), flags=re.S))
