"""The trace file: every step of one text through a model, as safetensors with a JSON manifest.

The manifest is the metadata key `headway`, sorted JSON:

    model, rung, step        what ran
    tokens                   id, bytes (hexadecimal) and display form of each
    tensors                  name -> shape, in the order in which they ran
    attentions               name of the layer -> how weights come from queries and keys:
                             scale, softcap, normalizer, mask (the names of its terms), offset,
                             heads, kv_heads, and the tensors `bias` and `allowed` if there are any

scores ... weights are in the file where they fit (see MATRICES); where they are not, the manifest
says all that it takes to recompute them from queries and keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from headway.data import cache
from headway.parts.masks import as_mask, causal, materialise
from headway.parts.normalizers import softmax
from headway.tokenizers import Tokenizer
from headway.tracing import INSIDE, Trace, trace

MATRICES = 64 * 2**20  # bytes that the matrices of queries by keys may take

_DRAWN = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


def record(
    run: Callable[[slice], object], tokens: int, most: int = MATRICES
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Run a model under a trace: its tensors, and the `attentions` of the manifest.

    run: the model on a part of the tokens; it is called with one token first, to learn the names.
    """
    with trace() as first:
        run(slice(0, 1))
    told = {name.removesuffix("options") for name in first.notes}
    matrices = [name for name in first if name.rpartition(".")[2] in INSIDE]
    # A matrix of one query and one key is one number, and there will be tokens squared of them.
    size = sum(np.asarray(first[name]).nbytes for name in matrices) * tokens**2
    lean = size > most
    wanted = [
        name
        for name in first
        if not (lean and name in matrices and name.rpartition(".")[0] + "." in told)
    ]
    with trace(only=wanted) as steps:
        run(slice(0, tokens))
    tensors = {name: np.asarray(value) for name, value in steps.items()}
    attentions = {}
    for name, options in steps.notes.items():
        layer = name.removesuffix("options")
        attentions[layer.removesuffix(".")] = _attention(layer, options, steps, tensors)
    return tensors, attentions


def save(path: Path, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all; its manifest gets the names and shapes."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    text = json.dumps({**manifest, "tensors": shapes}, sort_keys=True, ensure_ascii=False)
    with cache.whole(path) as aside:
        try:
            # The library writes the memory of an array that is turned as it lies.
            whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
            save_file(whole, aside, metadata={"headway": text})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the manifest. Raises ValueError when the file is no trace."""
    try:
        with safe_open(path, "numpy") as file:
            manifest: dict[str, Any] = json.loads((file.metadata() or {})["headway"])
        return load_file(path), manifest
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no trace file: {error}") from error


def described(tokens: np.ndarray, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """id, bytes and display form of each token: spaces are drawn, stray bytes are \\x..."""
    found = []
    for token in map(int, tokens):
        raw = tokenizer.token_bytes(token)
        shown = raw.decode(errors="backslashreplace").translate(_DRAWN)
        found.append({"id": token, "bytes": raw.hex(), "display": shown})
    return found


def _attention(
    layer: str, options: Mapping[str, Any], steps: Trace, tensors: dict[str, np.ndarray]
) -> dict[str, Any]:
    """How the weights of a layer come about; what is no structure goes among the tensors."""
    queries, keys = steps[layer + "queries"], steps[layer + "keys"]
    rows, columns = queries.shape[-2], keys.shape[-2]
    offset = options.get("offset")
    mask, bias = options.get("mask"), options.get("bias")
    terms = () if mask is None else as_mask(mask).terms
    if any(term is not causal and not str(term).startswith("window(") for term in terms):
        tensors[layer + "allowed"] = np.asarray(materialise(mask, queries, keys, offset))
    if bias is not None:
        tensors[layer + "bias"] = np.asarray(bias)
    return {
        "scale": float(options["scale"]),
        "softcap": options.get("softcap"),
        "normalizer": options.get("normalizer", softmax).__name__,
        "mask": list(map(str, terms)),
        "offset": columns - rows if offset is None else np.asarray(offset).tolist(),
        "heads": queries.shape[-3],
        "kv_heads": keys.shape[-3],
        "allowed": layer + "allowed" if layer + "allowed" in tensors else None,
        "bias": layer + "bias" if bias is not None else None,
    }
