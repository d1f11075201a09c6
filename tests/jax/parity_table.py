"""Measure the differences between the two engines and write docs/parity.md (`make docs`)."""

import platform
from pathlib import Path

import jax
import torch

from test_parity import (
    BOUNDS,
    MAIN,
    MODELS,
    curve_difference,
    model_difference,
    optimizer_difference,
)

HEAD = """\
# Differences between PyTorch and JAX

Both engines load the same checkpoint and get the same tokens. The table shows the largest absolute
difference, divided by the largest absolute value if that is above 1. *Logits* and *gradients* are
those of a model with one layer and the same dropout seed. *Optimizer* compares the parameters and
the state after two steps of Muon and AdamW with the same gradients. *Ten steps* is the largest
difference of a loss, a validation loss or a gradient norm during ten steps on the same batches, in
float32.

The tests (`tests/jax/test_parity.py`) require 1e-5 in float32, 1e-10 in float64 and 1e-4 for ten
steps. Checkpoints are identical byte for byte (`tests/jax/test_train.py`).

"""
COLUMNS = ("logits", "gradients", "optimizer")


def rows():
    for name in MODELS:
        cells = []
        both = [model_difference(name, dtype) for dtype in BOUNDS]
        for logits_or_gradients in zip(*both, strict=True):
            cells += [f"{value:.0e}" for value in logits_or_gradients]
        cells += [f"{optimizer_difference(name, dtype, 'muon'):.0e}" for dtype in BOUNDS]
        cells.append(f"{curve_difference(name, 'float32')[0]:.0e}" if name in MAIN else "")
        yield f"| {name} | {' | '.join(cells)} |"


def main():
    jax.config.update("jax_enable_x64", True)
    head = [f"{column}, {dtype}" for column in COLUMNS for dtype in BOUNDS]
    lines = [f"| | {' | '.join(head)} | ten steps |", "|---" * (len(head) + 2) + "|", *rows()]
    versions = f"torch {torch.__version__}, jax {jax.__version__}"
    text = HEAD + "\n".join(lines)
    text += f"\n\nMeasured on a CPU ({platform.machine()}), {versions}.\n"
    (Path(__file__).parents[2] / "docs" / "parity.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
