"""The trace file: every step of one text through a model, as safetensors with a JSON manifest.

The manifest is the metadata key `headway`, sorted JSON:

    version                  of this format; a file without it has version 1
    kind                     model, translation, ladder, or trace (of anything else)
    title, model, rung, step the traced model; of a Hugging Face folder also its path, and of a
                             masked model the token `mask`
    tokens                   id, bytes (hexadecimal) and display form of each; for a translation
                             those of the output, with `inputs` (shifted by one) and `key_tokens`
                             (of the source)
    steps                    [name, shape] of every step, in the order of execution; the header of
                             the safetensors tells which of them are in this file
    overview                 see below
    attentions               name of the layer -> the options of its attention: scale, softcap,
                             normalizer, mask (null, or the smallest and the largest query - key
                             that is allowed; null for no limit), offset, heads, kv_heads, the
                             tensors `bias` and `allowed` if there are any, and whether the weights
                             can be recomputed from these options (`recomputable`)
    heads                    name of each self-attention -> what `explore.heads.statistics` returns

scores ... weights are in the file if they fit (see MATRICES); otherwise they can be recomputed from
queries, keys and the manifest. For a long text each layer also has `overview`: at most OVERVIEW
evenly spaced rows of the weights, with the largest weight of each group of columns. The means in
`heads` are taken over the same rows. A model also has the tensors `lens.*` of `explore.lens`.

A file is read without trust: it may be damaged, or made to deceive. `load` checks its structure,
and `opened` also the manifest (see `manifest.py`). The header may have at most HEADER bytes and
TENSORS tensors; the tensors may have any size, because only the parts that are needed are read.
"""

import json
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from headway import cache
from headway.attention.arrays import as_numpy
from headway.attention.formula import attention
from headway.attention.grid import first_position, grid_of
from headway.attention.masks import materialize
from headway.attention.normalizers import softmax
from headway.attention.scores import dot
from headway.attention.spec import Spec
from headway.data.tokenizers import Tokenizer
from headway.explore.heads import finite, statistics
from headway.explore.manifest import check
from headway.tracing import INSIDE, Trace, silent, trace

VERSION = 2
HEADER, TENSORS = 64 * 2**20, 20_000  # the maximum bytes of a header, and number of tensors
MATRICES = 64 * 2**20  # maximum bytes of all matrices of queries by keys
OVERVIEW = 48  # maximum rows and columns of an overview

Tensors = dict[str, np.ndarray]
Manifest = dict[str, Any]

_DTYPES = {"F32": "<f4", "F64": "<f8", "BOOL": "?", "U8": "u1", "I32": "<i4"}
_SYMBOLS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
_INVISIBLE = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp", "Zs")  # Unicode's categories


def record(
    run: Callable[[slice], object],
    ids: np.ndarray,
    *,
    most: int = MATRICES,
    keep: Collection[str] = (),
) -> tuple[Tensors, Manifest]:
    """Trace a model; return its tensors and their part of the manifest.

    run: runs the model on a part of the tokens; first called with one token, to learn the names.
    ids: the tokens.
    most: the maximum bytes of scores ... weights; if they need more, those that can be recomputed
        are left out, except the weights of the layers in `keep`.
    """
    tokens = len(ids)
    with trace() as first:
        run(slice(0, 1))
    matrices = [name for name in first if name.rpartition(".")[2] in INSIDE]
    # For one token, each matrix of a head is one number; for all tokens, tokens**2 numbers.
    lean = sum(as_numpy(first[name]).nbytes for name in matrices) * tokens**2 > most
    kept = {f"{layer}.weights" for layer in keep}
    recomputable = {_layer(name) for name, spec in first.notes.items() if _is_softmax(spec)}
    left = {name for name in matrices if lean and _layer(name) in recomputable and name not in kept}
    with trace(only=[name for name in first if name not in left]) as steps:
        run(slice(0, tokens))
    tensors, manifest = describe(steps, {"": ids})
    shapes = {name: [*np.shape(first[name])[:-2], tokens, tokens] for name in left}
    shapes |= dict(manifest["steps"])
    manifest["steps"] = [[name, shapes[name]] for name in first]
    for layer in keep:
        if layer in manifest["attentions"]:
            manifest["attentions"][layer]["recomputable"] = False
    return tensors, manifest


def describe(
    steps: Trace, ids: Mapping[str, Iterable[int]] = MappingProxyType({})
) -> tuple[Tensors, Manifest]:
    """Return the tensors of a trace, and the `steps`, `attentions` and `heads` of the manifest.

    ids: the tokens that a self-attention reads, by the beginning of its name, if they are known.
    Steps with several shapes (decoding) are left out.
    """
    tensors = {name: as_numpy(step) for name, step in steps.items() if not isinstance(step, list)}
    names = list(tensors)
    shapes = [[name, list(tensor.shape)] for name, tensor in tensors.items()]
    attentions = {}
    for name, spec in steps.notes.items():
        layer = _layer(name)
        if {layer + "queries", layer + "keys"} <= tensors.keys():
            attentions[layer.removesuffix(".")] = _attention(layer, spec, steps, tensors)
    heads = {}
    for layer in dict.fromkeys(map(_layer, names)):
        chosen = _some_rows(layer, steps)
        if chosen is None:
            continue
        queries, weights = chosen
        keys, stride = weights.shape[-1], _stride(queries)
        if stride > 1:
            edges = np.arange(0, keys, stride)
            tensors[layer + "overview"] = np.maximum.reduceat(weights, edges, axis=-1)
        if queries == keys and not _is_cross_attention(layer, names):
            own = next((ids[start] for start in ids if layer.startswith(start)), None)
            heads[layer.removesuffix(".")] = statistics(weights, np.arange(0, keys, stride), own)
    return tensors, {
        "steps": shapes,
        "attentions": attentions,
        "heads": heads,
        "overview": OVERVIEW,
    }


def save(path: Path, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Write the file; it is never incomplete."""
    with cache.atomic(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, manifest))


def to_bytes(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> bytes:
    """Return the content of the file."""
    # safetensors ignores strides.
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    text = json.dumps({**manifest, "version": VERSION}, sort_keys=True)
    return serialize(arrays, metadata={"headway": text})


def is_trace_file(name: str, runs: str) -> bool:
    """Whether a name that a user gave means a trace file, and not a model."""
    path = Path(name)
    return path.suffix == ".safetensors" or (path.is_file() and not Path(runs, name).is_dir())


def opened(path: Path) -> tuple[Tensors, Manifest]:
    """Return what `load` does, after a check that every view of the page can be shown.

    Raises ValueError, in one line, for any other file; OSError if it cannot be read.
    """
    tensors, manifest = load(path)
    try:
        check(manifest, {name: tensor.shape for name, tensor in tensors.items()})
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return tensors, manifest


def load(path: Path) -> tuple[Tensors, Manifest]:
    """Return the tensors, which are read from the file when they are used, and the manifest.

    Raises ValueError if the file is not a trace file of this version; OSError if it cannot be read.
    """
    try:
        header, start = _header(path)
        manifest = _json(header.pop("__metadata__", {}).get("headway", "{}"))
        # A checkpoint of Headway has metadata too.
        if not isinstance(manifest, dict) or not {"version", "steps"} & manifest.keys():
            raise ValueError("it has no manifest; `headway trace MODEL TEXT -o FILE` writes one")
        version = manifest.get("version", 1)
        if version != VERSION:
            raise ValueError(
                f"its format has version {version!s:.20}, and this version of Headway reads "
                f"version {VERSION}: write it again with `headway trace`"
            )
        content = np.asarray(np.memmap(path, mode="r"))[start:]
        tensors = {name: _tensor(name, facts, content) for name, facts in header.items()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a trace file: {' '.join(str(error).split())}") from None
    return tensors, manifest


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, checked, and the position of the tensors."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER:
            raise ValueError(
                f"it is damaged or too large: its header has {size:,} bytes (at most {HEADER:,})"
            )
        with safe_open(path, "numpy"):  # checks the header against the size of the file
            pass
        header = _json(file.read(size).decode())
    if len(header) > TENSORS:
        raise ValueError(f"it is too large: it has {len(header):,} tensors (at most {TENSORS:,})")
    return header, 8 + size


def _json(text: str) -> Any:
    """Parse JSON as a browser does, which has no NaN."""

    def invalid(constant: str) -> None:
        raise ValueError(f"{constant} is not valid JSON")

    try:
        return json.loads(text, parse_constant=invalid)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _tensor(name: str, facts: Mapping[str, Any], content: np.ndarray) -> np.ndarray:
    if facts["dtype"] not in _DTYPES:
        raise ValueError(f"the type of {name!r} is {facts['dtype']} (not {', '.join(_DTYPES)})")
    begin, end = facts["data_offsets"]
    return content[begin:end].view(_DTYPES[facts["dtype"]]).reshape(facts["shape"])


def display(raw: bytes) -> str:
    """Make UTF-8 visible: symbols for spaces, escapes for invisible and invalid characters."""
    return "".join(map(_display, raw.decode(errors="backslashreplace")))


def token_records(tokens: Iterable[int], tokenizer: Tokenizer) -> list[Manifest]:
    """Return id, bytes and display form of each token."""
    raws = [(int(token), tokenizer.token_bytes(int(token))) for token in tokens]
    return [{"id": token, "bytes": raw.hex(), "display": display(raw)} for token, raw in raws]


def _display(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if unicodedata.category(character) in _INVISIBLE:
        return f"\\u{ord(character):04x}"
    return character


def _layer(name: str) -> str:
    """Return the prefix of a step's name, with its dot."""
    return name[: name.rfind(".") + 1]


def _is_softmax(spec: Spec) -> bool:
    """Whether the explorer's page can recompute the weights."""
    return spec.score is dot and spec.normalizer is softmax and spec.sink_logits is None


def _stride(size: int) -> int:
    """Return n such that every n-th of so many queries makes at most OVERVIEW."""
    return -(-size // OVERVIEW)


def _some_rows(layer: str, steps: Trace) -> tuple[int, np.ndarray] | None:
    """Return the number of queries, and the weights of every n-th of them (see `_stride`).

    They are recomputed if they are not recorded. None if that is not possible.
    """
    weights = steps.get(layer + "weights")
    recomputable = {layer + "queries", layer + "keys"} <= steps.keys() and (
        layer + "spec" in steps.notes
    )
    if isinstance(weights, list) or (weights is None and not recomputable):
        return None
    size = (steps[layer + "queries"] if weights is None else weights).shape[-2]
    rows = slice(None, None, _stride(size))
    if weights is None:
        spec = steps.notes[layer + "spec"]._replace(dropout=0.0)
        queries, keys = steps[layer + "queries"], steps[layer + "keys"]
        grid = grid_of(queries, keys, spec).select(rows=rows)
        with silent():
            chosen = attention(queries[..., rows, :], keys, None, spec, grid)
    else:
        chosen = weights[..., rows, :]
    return size, as_numpy(chosen)


def _is_cross_attention(layer: str, names: Iterable[str]) -> bool:
    """Whether a decoder reads the encoder's text here; `names` are all steps of the trace."""
    has_decoder = any(name.startswith("decoder.") for name in names)
    return (
        has_decoder and not layer.startswith("encoder.") and not layer.endswith("self_attention.")
    )


def _attention(layer: str, spec: Spec, steps: Trace, tensors: Tensors) -> Manifest:
    """Return the options of a layer; a mask that is not a band, and a bias, become tensors."""
    queries, keys = steps[layer + "queries"], steps[layer + "keys"]
    mask = spec.mask
    if mask is not None and not mask.is_band:
        tensors[layer + "allowed"] = as_numpy(materialize(queries, keys, spec))
    if spec.bias is not None:
        tensors[layer + "bias"] = as_numpy(spec.bias)
    return {
        "scale": spec.scale,
        "softcap": spec.softcap,
        "normalizer": getattr(spec.normalizer, "__name__", "custom"),
        "mask": None if mask is None else [finite(mask.band.least), finite(mask.band.most)],
        "offset": as_numpy(first_position(queries, keys, spec)).tolist(),
        "heads": queries.shape[-3],
        "kv_heads": keys.shape[-3],
        "recomputable": _is_softmax(spec),
        "allowed": layer + "allowed" if layer + "allowed" in tensors else None,
        "bias": layer + "bias" if spec.bias is not None else None,
    }
