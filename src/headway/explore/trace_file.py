"""The trace file: every step of one text through a model, as safetensors with a JSON manifest.

The manifest is the metadata key `headway`, sorted JSON:

    kind                     model, translation, ladder, or trace (of anything else)
    title, model, rung, step what ran
    tokens                   id, bytes (hexadecimal) and display form of each; of a translation
                             the words that were said, with `inputs`, one earlier, and key_tokens,
                             those of the source
    steps                    [name, shape] of every step, in the order in which they ran; the header
                             of the safetensors says which of them are in this file
    overview                 see below
    attentions               name of the layer -> how weights come from queries and keys:
                             scale, softcap, normalizer, mask (null, or the smallest and the largest
                             query - key that is allowed; null for no limit), offset, heads,
                             kv_heads, the tensors `bias` and `allowed` if there are any, and
                             whether that is all (`recomputable`)

scores ... weights are in the file where they fit (see MATRICES); where they are not, the manifest
says all that it takes to recompute them from queries and keys. A long text also has, for each
layer, `overview`: at most OVERVIEW rows of the weights, evenly apart, and of as many columns as lie
between them the largest weight.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from headway import cache
from headway.attention.arrays import as_numpy
from headway.attention.formula import attention
from headway.attention.grid import grid_of
from headway.attention.masks import materialize
from headway.attention.normalizers import softmax
from headway.attention.scores import dot
from headway.attention.spec import Spec
from headway.data.tokenizers import Tokenizer
from headway.tracing import INSIDE, Trace, silent, trace

MATRICES = 64 * 2**20  # bytes that the matrices of queries by keys may take
OVERVIEW = 48  # rows and columns of a matrix seen from afar

Tensors = dict[str, np.ndarray]
Manifest = dict[str, Any]

_DRAWN = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
_INVISIBLE = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp", "Zs")  # Unicode's categories


def record(
    run: Callable[[slice], object],
    tokens: int,
    *,
    most: int = MATRICES,
    keep: Collection[str] = (),
) -> tuple[Tensors, Manifest]:
    """Run a model under a trace: its tensors, and what the manifest says of them.

    run: the model on a part of the tokens; it is called with one token first, to learn the names.
    most: the bytes that scores ... weights may take; if they take more they are left out wherever
        they can be recomputed, except the weights of the layers in `keep`.
    """
    with trace() as first:
        run(slice(0, 1))
    matrices = [name for name in first if name.rpartition(".")[2] in INSIDE]
    # A matrix of one query and one key is one number, and there will be tokens squared of them.
    lean = sum(as_numpy(first[name]).nbytes for name in matrices) * tokens**2 > most
    apart = {f"{layer}.weights" for layer in keep}
    told = {_layer(name) for name, note in first.notes.items() if _is_softmax(note)}
    left = {name for name in matrices if lean and _layer(name) in told and name not in apart}
    with trace(only=[name for name in first if name not in left]) as steps:
        run(slice(0, tokens))
    tensors, manifest = described(steps)
    shapes = {name: [*np.shape(first[name])[:-2], tokens, tokens] for name in left}
    shapes |= dict(manifest["steps"])
    manifest["steps"] = [[name, shapes[name]] for name in first]
    for layer in keep:
        if layer in manifest["attentions"]:
            manifest["attentions"][layer]["recomputable"] = False
    return tensors, manifest


def described(steps: Trace) -> tuple[Tensors, Manifest]:
    """The tensors of a trace, and the `steps` and `attentions` of the manifest.

    What was met again in several shapes (decoding) is left out.
    """
    tensors = {name: as_numpy(step) for name, step in steps.items() if not isinstance(step, list)}
    names = list(tensors)
    shapes = [[name, list(tensor.shape)] for name, tensor in tensors.items()]
    attentions = {}
    for name, spec in steps.notes.items():
        layer = _layer(name)
        if {layer + "queries", layer + "keys"} <= tensors.keys():
            attentions[layer.removesuffix(".")] = _attention(layer, spec, steps, tensors)
    for layer in dict.fromkeys(map(_layer, names)):
        tensors |= _overview(layer, steps)
    return tensors, {"steps": shapes, "attentions": attentions, "overview": OVERVIEW}


def save(path: Path, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all."""
    text = json.dumps(manifest, sort_keys=True)
    with cache.atomic(path) as temporary:
        try:
            # The library writes the memory of an array that is turned as it lies.
            whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
            save_file(whole, temporary, metadata={"headway": text})
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


def drawn(raw: bytes) -> str:
    """UTF-8 as one sees it: spaces are drawn, what is invisible or no character is escaped."""
    return "".join(map(_drawn, raw.decode(errors="backslashreplace")))


def spelled(tokens: Iterable[int], tokenizer: Tokenizer) -> list[Manifest]:
    """id, bytes and display form of each token."""
    raws = [(int(token), tokenizer.token_bytes(int(token))) for token in tokens]
    return [{"id": token, "bytes": raw.hex(), "display": drawn(raw)} for token, raw in raws]


def _drawn(character: str) -> str:
    if character in _DRAWN:
        return _DRAWN[character]
    if unicodedata.category(character) in _INVISIBLE:
        return f"\\u{ord(character):04x}"
    return character


def _layer(name: str) -> str:
    """The prefix of a step's name, with its dot."""
    return name[: name.rfind(".") + 1]


def _is_softmax(spec: Spec) -> bool:
    return spec.score is dot and spec.normalizer is softmax


def _overview(layer: str, steps: Trace) -> Tensors:
    """Of large matrices of weights: every n-th row, and in it the largest of every n columns."""
    weights = steps.get(layer + "weights")
    operands = {layer + "queries", layer + "keys"} <= steps.keys()
    told = operands and layer + "spec" in steps.notes
    if isinstance(weights, list) or (weights is None and not told):
        return {}
    size = (steps[layer + "queries"] if weights is None else weights).shape[-2]
    if size <= OVERVIEW:
        return {}
    rows = slice(None, None, apart(size))
    if weights is None:
        spec = steps.notes[layer + "spec"]._replace(dropout=0.0)
        queries, keys = steps[layer + "queries"], steps[layer + "keys"]
        grid = grid_of(queries, keys, spec).select(rows=rows)
        with silent():
            some = attention(queries[..., rows, :], keys, None, spec, grid)
    else:
        some = weights[..., rows, :]
    found = as_numpy(some)
    edges = np.arange(0, found.shape[-1], rows.step)
    return {layer + "overview": np.maximum.reduceat(found, edges, axis=-1)}


def apart(size: int) -> int:
    """How many rows (and columns) of a matrix of this size one in its overview stands for."""
    return -(-size // OVERVIEW)


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None


def _attention(layer: str, spec: Spec, steps: Trace, tensors: Tensors) -> Manifest:
    """Return the options of a layer; a mask that is not a band, and a bias, become tensors."""
    queries, keys = steps[layer + "queries"], steps[layer + "keys"]
    rows, columns = queries.shape[-2], keys.shape[-2]
    mask = spec.mask
    if mask is not None and not mask.is_band:
        tensors[layer + "allowed"] = as_numpy(materialize(queries, keys, spec))
    if spec.bias is not None:
        tensors[layer + "bias"] = as_numpy(spec.bias)
    return {
        "scale": spec.scale,
        "softcap": spec.softcap,
        "normalizer": getattr(spec.normalizer, "__name__", "custom"),
        "mask": None if mask is None else [_finite(mask.band.least), _finite(mask.band.most)],
        "offset": columns - rows if spec.offset is None else as_numpy(spec.offset).tolist(),
        "heads": queries.shape[-3],
        "kv_heads": keys.shape[-3],
        "recomputable": _is_softmax(spec),
        "allowed": layer + "allowed" if layer + "allowed" in tensors else None,
        "bias": layer + "bias" if spec.bias is not None else None,
    }
