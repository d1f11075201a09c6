"""How far apart the two engines are, as measured: writes docs/parity.md (`make docs`)."""

import platform
from pathlib import Path

import jax
import torch

from test_parity import ASKED, BOUNDS, MODELS, curves_apart, model_apart, optimizer_apart

HEAD = """\
# PyTorch and JAX, held to each other

The same checkpoint and the same tokens in both engines: the largest difference, as a share of the
largest number where that is above 1. *Logits* and *gradients*: of a model of one layer, with
dropout by the same seed where there is any; *optimiser*: parameters and state after two steps of
Muon and AdamW with the same gradients; *ten steps* of training on the same batches: the largest
difference of a loss, a validation loss or a gradient's norm, in float32.

Bounds of the tests (`tests/jax/test_parity.py`): 1e-5 in float32, 1e-10 in float64, 1e-4 for ten
steps. Files are interchanged byte for byte (`tests/jax/test_train.py`).

"""
COLUMNS = ("logits", "gradients", "optimiser")


def rows():
    for name in MODELS:
        cells = []
        both = {dtype: model_apart(name, dtype) for dtype in BOUNDS}
        for place in range(2):
            cells += [f"{both[dtype][place]:.0e}" for dtype in BOUNDS]
        cells += [f"{optimizer_apart(name, dtype, 'muon'):.0e}" for dtype in BOUNDS]
        cells.append(f"{curves_apart(name, 'float32')[0]:.0e}" if name in ASKED else "")
        yield f"| {name} | {' | '.join(cells)} |"


def main():
    jax.config.update("jax_enable_x64", True)
    head = [f"{what}, {dtype}" for what in COLUMNS for dtype in BOUNDS]
    lines = [f"| | {' | '.join(head)} | ten steps |", "|---" * (len(head) + 2) + "|", *rows()]
    versions = f"torch {torch.__version__}, jax {jax.__version__}"
    said = f"\nMeasured on a CPU ({platform.machine()}), {versions}."
    text = HEAD + "\n".join(lines) + "\n" + said + "\n"
    (Path(__file__).parents[2] / "docs" / "parity.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
