"""How well the attention of a model in training does: what its weights look like, head by head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from headway.attention.arrays import Array, as_numpy
from headway.tracing import trace
from headway.training import muon
from headway.training.session import Engine

# The parameter that makes the queries, alone or as the first part of a packed one.
_QUERIES = re.compile(r"\.(W_query|W_qkv|q\.weight)$")

Maps = list[Float[np.ndarray, "windows heads tokens tokens"]]


class Health(NamedTuple):
    """Of every layer, from the first; but for `query_gradient`, of every head in it.

    entropy: of a query's weights, as a share of what equal weights have: 1 is attention to all
        alike, 0 to one token alone; the mean over the queries that see two tokens or more.
    largest: the largest scaled score of those that get weight, before any bias of positions.
    first: the share of weight that the first token gets from the queries after it.
    query_gradient: the norm of the gradient of W_query; empty where the mechanism has no such
        matrix.
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
    """The health of a model, on windows that it was not trained on."""
    weights, scores = seen(engine, model, inputs)
    gradients = {n: as_numpy(g) for n, g in engine.gradients(model, inputs, targets).items()}
    return Health(
        entropy=[entropy(layer, model.config.attention.causal).tolist() for layer in weights],
        largest=[_largest(layer).tolist() for layer in scores],
        first=[layer[:, :, 1:, 0].mean((0, 2)).tolist() for layer in weights],
        query_gradient=query_norms(gradients),
    )


def query_norms(gradients: Mapping[str, Float[np.ndarray, "..."]]) -> list[float]:
    """The norm of the gradient of each layer's W_query, from the first layer.

    W_query may be a part of a packed matrix. Empty where the mechanism has no such matrix.
    """
    names = [name for name in gradients if _QUERIES.search(name)]
    names.sort(key=lambda name: int(name.split(".")[1]))  # blocks.10 after blocks.2
    return [float(np.linalg.norm(muon.unpacked(name, gradients[name])[0])) for name in names]


def entropy(
    weights: Float[np.ndarray, "windows heads tokens tokens"], causal: bool = True
) -> Float[np.ndarray, " heads"]:
    """Of each head: see `Health`."""
    positive = np.where(weights > 0, weights, 1.0)
    found = -(positive * np.log(positive)).sum(-1)[..., 1:]
    tokens = weights.shape[-1]
    equal = np.log(np.arange(2, tokens + 1) if causal else np.full(tokens - 1, tokens))
    return np.asarray((found / equal).mean((0, 2)))


def seen(own: Engine, model: Any, windows: Int[np.ndarray, "windows tokens"]) -> tuple[Maps, Maps]:
    """Of each layer, the weights and what they were made of: -inf where there is no weight."""
    with trace(["blocks.*.attention*weights", "blocks.*.attention*.sc*"]) as steps:
        own.logits(model, windows)
    size = (len(windows), -1, windows.shape[-1], windows.shape[-1])
    layers = range(model.config.layers)
    weights = [_heads(steps, layer, ("weights",), size) for layer in layers]
    scores = [_heads(steps, layer, ("scaled", "scores"), size) for layer in layers]
    return weights, [np.where(w > 0, s, -np.inf) for w, s in zip(weights, scores, strict=True)]


def _heads(
    steps: Mapping[str, Array], layer: int, names: tuple[str, ...], size: tuple[int, ...]
) -> Float[np.ndarray, "windows heads tokens tokens"]:
    """A step of all heads of a layer, whether they were made together or one after another."""
    for name in names:
        pattern = re.compile(rf"blocks\.{layer}\.attention\.(.*\.)?{name}")
        found = [value for key, value in steps.items() if pattern.fullmatch(key)]
        if found:
            whole = [
                np.broadcast_to(each, (size[0], *each.shape[-2:])) if each.ndim == 2 else each
                for each in map(as_numpy, found)
            ]
            return np.concatenate([each.reshape(size) for each in whole], axis=1)
    raise LookupError(f"block {layer} made no {names[0]}")


def _largest(scores: Float[np.ndarray, "windows heads tokens tokens"]) -> Float[np.ndarray, " h"]:
    return np.asarray(scores.max((0, 2, 3)))
