"""Training health: statistics of the attention of a model during training, per head."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from headway.attention.arrays import Array, as_numpy
from headway.tracing import trace
from headway.training import muon
from headway.training.session import Engine

# The query projection, separate or as the first part of a packed matrix.
_QUERIES = re.compile(r"\.(W_query|W_qkv|q\.weight)$")

Maps = list[Float[np.ndarray, "windows heads tokens tokens"]]


class Health(NamedTuple):
    """Values per layer and head; `query_gradient` per layer.

    entropy: of the weights of a query, relative to equal weights: 1 for equal weights, 0 for a
        single token; the mean over the queries that attend to two or more tokens.
    largest: the largest scaled score with a weight, before a bias of positions.
    first: the weight of the first token, the mean over the later queries.
    query_gradient: the norm of the gradient of W_query; empty if there is no such matrix.
    """

    entropy: list[list[float]]
    largest: list[list[float]]
    first: list[list[float]]
    query_gradient: list[float]


def look(
    engine: Engine,
    model: Any,
    inputs: Int[np.ndarray, "windows tokens"],
    targets: Int[np.ndarray, "windows tokens"],
) -> Health:
    """Return the health of a model on validation windows."""
    weights, scores = seen(engine, model, inputs)
    gradients = {n: as_numpy(g) for n, g in engine.gradients(model, inputs, targets).items()}
    return Health(
        entropy=[entropy(layer, model.config.attention.causal).tolist() for layer in weights],
        largest=[layer.max((0, 2, 3)).tolist() for layer in scores],
        first=[layer[:, :, 1:, 0].mean((0, 2)).tolist() for layer in weights],
        query_gradient=query_norms(gradients),
    )


def query_norms(gradients: Mapping[str, Float[np.ndarray, "..."]]) -> list[float]:
    """Return the norm of the gradient of W_query per layer; empty if there is no such matrix.

    W_query may be a part of a packed matrix.
    """
    names = [name for name in gradients if _QUERIES.search(name)]
    names.sort(key=lambda name: int(name.split(".")[1]))  # blocks.10 after blocks.2
    return [float(np.linalg.norm(muon.unpacked(name, gradients[name])[0])) for name in names]


def entropy(
    weights: Float[np.ndarray, "windows heads tokens tokens"], causal: bool = True
) -> Float[np.ndarray, " heads"]:
    """Return the entropy per head; see `Health`."""
    positive = np.where(weights > 0, weights, 1.0)
    nats = -(positive * np.log(positive)).sum(-1)[..., 1:]
    tokens = weights.shape[-1]
    equal = np.log(np.arange(2, tokens + 1) if causal else np.full(tokens - 1, tokens))
    return np.asarray((nats / equal).mean((0, 2)))


def seen(
    engine: Engine, model: Any, windows: Int[np.ndarray, "windows tokens"]
) -> tuple[Maps, Maps]:
    """Return the weights per layer, and the scores (-inf where the weight is 0)."""
    with trace(["blocks.*.attention*weights", "blocks.*.attention*.sc*"]) as steps:
        engine.logits(model, windows)
    size = (len(windows), -1, windows.shape[-1], windows.shape[-1])
    layers = range(model.config.layers)
    weights = [_heads(steps, layer, ("weights",), size) for layer in layers]
    scores = [_heads(steps, layer, ("scaled", "scores"), size) for layer in layers]
    return weights, [np.where(w > 0, s, -np.inf) for w, s in zip(weights, scores, strict=True)]


def _heads(
    steps: Mapping[str, Array], layer: int, names: tuple[str, ...], size: tuple[int, ...]
) -> Float[np.ndarray, "windows heads tokens tokens"]:
    """Return a step of all heads of a layer, which were computed together or one by one."""
    for name in names:
        pattern = re.compile(rf"blocks\.{layer}\.attention\.(.*\.)?{name}")
        values = [as_numpy(value) for key, value in steps.items() if pattern.fullmatch(key)]
        if values:
            arrays = [
                np.broadcast_to(value, (size[0], *value.shape[-2:])) if value.ndim == 2 else value
                for value in values
            ]
            return np.concatenate([array.reshape(size) for array in arrays], axis=1)
    raise LookupError(f"block {layer} has no {names[0]}")
