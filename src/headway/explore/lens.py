"""The logit lens: which token each layer would predict (nostalgebraist 2020).

The final norm and the output layer are applied to the residual stream after every layer, as if
the model ended there.
"""

from collections.abc import Callable, Mapping

import numpy as np

from headway.attention.arrays import Array, as_numpy
from headway.models.gpt import GPTConfig

CANDIDATES = 5  # tokens per layer and position
MOST = 2**34  # multiply-adds


def lens(
    tensors: Mapping[str, np.ndarray],
    config: GPTConfig,
    readout: Callable[[np.ndarray], Array],
    stop: Callable[[], None],
) -> dict[str, np.ndarray]:
    """Return the most likely tokens and their probabilities, as `lens.*` of the trace file.

    tensors: those of a trace of this model. readout: as in `training.session.Engine`. stop: called
    before each layer. Both results have the shape (1 + layers, positions, candidates): first the
    embedding, then the layers; the last positions of the text, as many as the trace has logits of,
    or fewer for a large model (see MOST).
    """
    names = ["embedded", *(f"blocks.{layer}.after_mlp" for layer in range(config.layers))]
    most = max(1, MOST // (len(names) * config.width * config.vocabulary))
    positions = min(most, tensors["logits"].shape[1])
    best, probabilities = [], []
    for name in names:
        stop()
        logits = as_numpy(readout(tensors[name][:, -positions:]))[0]
        tokens = np.argpartition(-logits, min(CANDIDATES, logits.shape[-1]) - 1)[:, :CANDIDATES]
        order = np.argsort(-np.take_along_axis(logits, tokens, -1), axis=-1, kind="stable")
        tokens = np.take_along_axis(tokens, order, -1)
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        total = exponentials.sum(-1, keepdims=True, dtype=np.float64)
        best.append(tokens.astype(np.int32))
        shares = np.take_along_axis(exponentials, tokens, -1) / total
        probabilities.append(shares.astype(np.float32))
    return {"lens.tokens": np.stack(best), "lens.probabilities": np.stack(probabilities)}
