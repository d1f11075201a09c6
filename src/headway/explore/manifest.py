"""The manifest of a trace file: its keys and their types, and the check of a file from elsewhere.

The page in `static/` reads these keys without checking them: a key that it reads must be here.
Unknown keys are ignored.
"""

import math
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np

from headway.ladder.differences import Differences
from headway.tracing import INSIDE

Shapes = Mapping[str, tuple[int, ...]]


class Token(TypedDict):
    """A token: its number, its bytes (hexadecimal) and how it is displayed."""

    display: str
    id: NotRequired[int]
    bytes: NotRequired[str]


class Options(TypedDict):
    """The options of an attention; see `trace_file`."""

    scale: float
    softcap: float | None
    normalizer: str
    mask: tuple[float | None, float | None] | None
    offset: int | list[Any]
    heads: int
    kv_heads: int
    recomputable: bool
    allowed: str | None
    bias: str | None
    additive: NotRequired[str]


class Measured(TypedDict):
    """What a head does; see `heads.statistics`."""

    previous: float | None
    itself: float | None
    first: float | None
    induction: float | None
    entropy: float | None


class Measures(TypedDict):
    """What the heads of an attention do."""

    queries: int
    repeated: int | None
    heads: list[Measured]


class Edited(TypedDict):
    """An edit that applied; see `edits.Edit`."""

    what: str
    attention: str
    head: int | None


class EditKind(TypedDict):
    """A kind of edit; see `edits.Kind`."""

    name: str
    shown: list[str]
    label: str
    heads: Literal["any", "all", "others"]
    without: str | None


class Sampling(TypedDict):
    """How the continuation was generated."""

    write: int
    temperature: float
    top_k: int | None
    seed: int


class Rung(TypedDict):
    """A rung of the ladder."""

    name: str
    idea: str
    equation: str
    source: str
    dropout: float
    parameters: list[str]
    differs: Differences | None


class Ladder(TypedDict):
    """The ladder on one text."""

    tokens: list[Token]
    key_tokens: NotRequired[list[Token]]
    text: str
    rungs: list[Rung]


class Manifest(TypedDict):
    """All keys."""

    kind: Literal["model", "translation", "ladder", "trace"]
    title: str
    other: NotRequired[str]
    text: str
    tokens: list[Token]
    key_tokens: NotRequired[list[Token]]
    inputs: NotRequired[list[Token]]
    steps: list[tuple[str, list[int]]]
    attentions: dict[str, Options]
    heads: NotRequired[dict[str, Measures]]
    overview: int
    step: NotRequired[int | None]
    path: NotRequired[str | None]
    mask: NotRequired[int | None]
    validation: NotRequired[float | None]
    rung: NotRequired[str | None]
    model: NotRequired[dict[str, Any]]
    vocabulary: NotRequired[list[str]]
    changes: NotRequired[dict[str, tuple[float, float]]]
    edits: NotRequired[list[Edited]]
    edit_kinds: NotRequired[list[EditKind]]
    written: NotRequired[list[Token]]
    sampling: NotRequired[Sampling]
    left_out: NotRequired[list[str]]
    ladder: NotRequired[Ladder]


def check(manifest: Any, tensors: Shapes) -> None:
    """Raise ValueError if a manifest is invalid, or does not agree with the shapes of the tensors.

    What passes can be shown on every view of the page.
    """
    _check_type(manifest, Manifest, "the manifest")
    _check_sizes(manifest, tensors)


def _check_type(value: Any, kind: Any, name: str) -> None:
    """Raise ValueError if a value from JSON does not have a type. Tuples are lists in JSON."""
    origin, parts = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        _require(isinstance(value, dict), f"{name} must be an object")
        for missing in sorted(kind.__required_keys__ - value.keys()):
            raise ValueError(f"{name} has no key `{missing}`")
        for key, of_key in _types(kind).items():
            if key in value:
                _check_type(value[key], of_key, f"`{key}`")
    elif origin is UnionType:
        fitting = [part for part in parts if type(value) is _json_type(part)]
        if type(value) is int and float in parts:
            fitting = [float]
        _require(bool(fitting), f"{name} has the wrong type ({type(value).__name__})")
        _check_type(value, fitting[0], name)
    elif origin in (list, tuple):
        _require(isinstance(value, list), f"{name} must be a list")
        fits = origin is list or len(value) == len(parts)
        _require(fits, f"{name} must have {len(parts)} elements")
        for element, part in zip(
            value, parts if origin is tuple else parts * len(value), strict=False
        ):
            _check_type(element, part, f"an element of {name}")
    elif origin is dict:
        _require(isinstance(value, dict), f"{name} must be an object")
        for element in value.values():
            _check_type(element, parts[1], f"an element of {name}")
    elif origin is Literal:
        _require(value in parts, f"{name} must be one of {', '.join(parts)}")
    elif kind is float:
        _require(type(value) in (int, float), f"{name} must be a number")
        _require(abs(value) < 1e300, f"{name} must be finite")
    elif kind is not Any:
        fits = type(value) is kind
        _require(fits, f"{name} must be {kind.__name__}, not {type(value).__name__}")


_types = cache(get_type_hints)


def _json_type(kind: Any) -> Any:
    if is_typeddict(kind):
        return dict
    return list if get_origin(kind) is tuple else get_origin(kind) or kind


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_sizes(manifest: Manifest, tensors: Shapes) -> None:
    shapes = {name: tuple(shape) for name, shape in manifest["steps"]}
    _require(manifest["overview"] > 0, "`overview` must be positive")
    for name, shape in shapes.items():
        same = name == "logits" or tensors.get(name, shape) == shape
        _require(same and min(shape, default=0) >= 0, f"the shape of {name!r} is wrong")
    logits = tensors.get("logits", (1, 1, 1))  # the manifest's shape is that of all positions
    fits = len(logits) > 1 and 0 < logits[-2] <= len(manifest["tokens"])
    _require(fits and 0 not in logits, "the shape of 'logits' is wrong")
    names = [name.removesuffix(".weights") for name in shapes if name.endswith(".weights")]
    names += [*manifest["attentions"], *([""] if "weights" in shapes else [])]
    layers = {f"{name}." if name else "": manifest["attentions"].get(name) for name in names}
    for layer, options in layers.items():
        _check_layer(layer, options, tensors, shapes)
        rows, columns = _matrices(layer, options, tensors)[-2:]
        queries, keys = _tokens(layer, manifest)
        fits = 0 < rows <= len(queries) and 0 < columns <= len(keys)
        _require(fits, f"the tokens do not fit the shape of {layer}weights")
    measured = [name for name in manifest.get("heads", {}) if not name.startswith("ladder.")]
    fits = len(measured) == len(manifest.get("heads", {})) and {*measured} <= {*names}
    _require(fits, "`heads` has a name that is no attention")
    lens = {tensors.get(f"lens.{name}", ()) for name in ("tokens", "probabilities")}
    fits = lens == {()} or (len(lens) == 1 and len(min(lens)) == 3 and 0 not in min(lens))
    fits = fits and (lens == {()} or min(lens)[1] <= len(manifest["tokens"]))
    _require(fits, "the shapes of the logit lens are wrong")
    ladder = manifest.get("ladder")
    _require(manifest["kind"] != "ladder" or ladder is not None, "there is no ladder")
    rungs = {rung["name"]: rung for rung in ladder["rungs"]} if ladder else {}
    _require(bool(rungs) or ladder is None, "the ladder has no rungs")
    for name, rung in rungs.items():
        whole = any(layer.startswith(f"ladder.{name}.") for layer in layers) and bool(rung["idea"])
        equals = rung["differs"]["equals"] if rung["differs"] else name
        fits = len(tensors.get(f"ladder.{name}.result", ())) > 1 and equals in rungs
        _require(whole and fits, f"the rung {name!r} is incomplete")
    _require(bool(manifest["tokens"]), "there are no tokens")


def _matrices(layer: str, options: Options | None, tensors: Shapes) -> tuple[int, ...]:
    """Return the shape of the matrices of weights of a layer."""
    if options is None:
        return tensors[f"{layer}weights"]
    return (*tensors[f"{layer}queries"][:-1], tensors[f"{layer}keys"][-2])


def _check_layer(layer: str, options: Options | None, tensors: Shapes, steps: Shapes) -> None:
    """Raise ValueError if tensors of a layer are missing, or their shapes do not agree.

    steps: the shapes in the manifest, also of the steps that are not in the file.
    """
    for name in ("weights",) if options is None else ("queries", "keys"):
        shape = tensors.get(layer + name, ())
        fits = len(shape) > (1 if options is None else 2) and 0 not in shape
        fits = fits and layer + name in steps
        _require(fits, f"the tensor {layer + name!r} is missing or has the wrong shape")
    matrices = _matrices(layer, options, tensors)
    heads, kv_heads = 1, 1
    if options is not None:
        heads, kv_heads = options["heads"], options["kv_heads"]
        queries, keys = tensors[f"{layer}queries"], tensors[f"{layer}keys"]
        fits = heads == queries[-3] and kv_heads == keys[-3] and heads % kv_heads == 0
        fits = fits and queries[:-3] == keys[:-3] and queries[-1] == keys[-1]
        _require(fits, f"the heads of {layer}queries and {layer}keys do not fit")
    inside = [layer + step for step in INSIDE]
    shown = {*inside, f"{layer}context"} & tensors.keys() or (options and options["recomputable"])
    _require(bool(shown), f"no step of {layer or 'the attention'} is in the file")
    for name in inside:
        fits = {tensors.get(name, matrices), steps.get(name, matrices)} == {matrices}
        _require(fits, f"the shape of {name!r} is wrong")
    context = tensors.get(f"{layer}context", matrices)
    _require(context[:-1] == matrices[:-1], f"the shape of {layer}context is wrong")
    values = tensors.get(f"{layer}values", (1, 1))
    count = math.prod(matrices[:-2]) // heads * kv_heads
    fits = f"{layer}values" not in tensors or (
        len(values) > 1 and values[-2] == matrices[-1] and math.prod(values[:-2]) == count
    )
    _require(fits, f"the shape of {layer}values is wrong")
    if options is not None:
        for array in (options["allowed"], options["bias"]):
            fits = array is None or _broadcasts(tensors.get(array), matrices)
            _require(fits, f"the tensor {array!r} is missing or has the wrong shape")
        vector = options.get("additive")
        _require(vector is None or vector in tensors, f"the tensor {vector!r} is missing")


def _broadcasts(shape: tuple[int, ...] | None, matrices: tuple[int, ...]) -> bool:
    try:
        return shape is not None and np.broadcast_shapes(shape, matrices) == matrices
    except ValueError:
        return False


def _tokens(layer: str, manifest: Manifest) -> tuple[list[Token], list[Token]]:
    """Return the tokens of the queries and of the keys, as `Trace.tokens` of the page does."""
    source = manifest.get("key_tokens", [])
    inputs = manifest.get("inputs")
    if inputs is not None and layer.startswith("encoder."):
        return source, source
    if inputs is not None and layer.endswith("self_attention."):
        return inputs, inputs
    own: Manifest | Ladder | None = manifest
    if layer.startswith("ladder."):
        own = manifest.get("ladder")
    if own is None:
        return [], []
    return own["tokens"], own.get("key_tokens", own["tokens"])
