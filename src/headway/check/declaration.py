"""What a user declares about an attention that is to be checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from headway.attention.masks import Mask, Predicate
from headway.nearest import suggestion

FEATURES = {
    "mask": "boolean, of the keys (batch, keys) or full (batch, 1, queries, keys)",
    "causal": "bool: no query attends to a later key",
    "window": "int: a query attends to that many keys, itself included",
    "softcap": "float: c * tanh(scores / c), before the mask",
    "dropout": "qkv: float, the rate on the weights; self, model: dropout is active while training",
    "positions": "qkv: integers (tokens,): queries and keys are rotated (RoPE)",
    "cache": "qkv: there may be more keys than queries; the last query has the position of the "
    "last key; self, model: cache=None or the cache of the last call; returns (output, cache)",
    "documents": "model: integers (batch, tokens): a token attends to its own document only",
    "labels": "model: integers (batch, tokens), equal to the input tokens; returns the loss",
    "tied": "model: the embedding and the output layer share one weight",
}


@dataclass(frozen=True)
class Declaration:
    """What a user declares about an attention. Raises ValueError for invalid values.

    Attributes
    ----------
    kind
        qkv: attention(queries, keys, values, **options) -> context; self: attention(x) with x
        (batch, tokens, width) -> the same shape or another width; model: attention(tokens) with
        tokens (batch, tokens) -> logits (batch, tokens, vocabulary).
    layout
        qkv: bhtd (batch, heads, tokens, head_dim), bthd, or packed (batch, tokens, heads *
        head_dim).
    heads
        qkv: the number of heads of the inputs.
    kv_heads
        qkv: the number of heads of keys and values, by default `heads`.
    head_dim
        qkv: the features of a head.
    width
        self: the features of a token; by default detected.
    vocabulary
        model: the number of different tokens; by default detected.
    causal
        It is causal in every call; by default only a model is, unless "causal" is a feature.
    positions
        qkv, self: it has position information, such as rotary or learned positions, or a bias by
        position (ALiBi, T5).
    block
        self: it has a residual connection or an MLP around the attention.
    layers
        model: its number of layers. Each layer with a window reaches window - 1 tokens further
        back; without this number a model may reach any distance.
    restart
        model: positions start at 0 in every document, so that a document in a row has the logits
        that it has alone.
    window
        In every call a query sees this many keys, itself included; if it is not causal, the keys at
        a smaller distance than this.
    prefix
        In every call the first tokens see each other, this many; a causal mask does not apply to
        them.
    pattern
        Any other fixed mask, only in Python: a mask of Headway such as `causal & window(5)`, or a
        function of index arrays (batch, head, query_position, key_position) that returns booleans.
    sinks
        The softmax has additional terms, such as learned sinks or additional keys, so that the
        weights of the keys sum to less than 1.
    scale
        qkv, self: its factor of the dot products, if that is not 1/sqrt(head_dim).
    softcap
        qkv, self: scores are capped in every call, as softcap * tanh(score / softcap).
    qk_norm
        qkv, self: queries and keys are normalized, so that their length does not matter.
    gate
        self: the output is multiplied by a gate that is computed from x.
    normalizer
        softmax, or other: for example sparsemax, sigmoid or linear attention.
    skip
        The names of checks to leave out.
    mask_true
        The meaning of True in its masks.
    mask_shape
        keys: masks are (batch, keys); full: (batch, 1, queries, keys).
    rotary
        The pairs of features that are rotated: half (i and i + d/2) or interleaved (2i and 2i + 1).
    rotary_base
        The base of the angles; by default any base from 10,000 on.
    rotary_share
        The part of the features of a head that is rotated; by default all.
    features
        The options that it supports, of FEATURES.
    engine
        The library of a function, by default detected; torch or jax for a run.
    device
        The device of PyTorch; by default that of the parameters. A run and a Hugging Face folder
        are loaded on the fastest device.
    precision
        The highest precision that it supports.
    """

    kind: Literal["qkv", "self", "model"]
    layout: Literal["bhtd", "bthd", "packed"] = "bhtd"
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int = 8
    width: int | None = None
    vocabulary: int | None = None
    causal: bool | None = None
    positions: bool = False
    block: bool = False
    layers: int | None = None
    restart: bool = False
    window: int | None = None
    prefix: int | None = None
    pattern: Mask | Predicate | None = None
    sinks: bool = False
    scale: float | None = None
    softcap: float | None = None
    qk_norm: bool = False
    gate: bool = False
    normalizer: Literal["softmax", "other"] = "softmax"
    skip: tuple[str, ...] = ()
    mask_true: Literal["attend", "masked"] = "attend"
    mask_shape: Literal["keys", "full"] = "keys"
    rotary: Literal["half", "interleaved"] = "half"
    rotary_base: float | None = None
    rotary_share: float | None = None
    features: tuple[str, ...] = ()
    engine: Literal["numpy", "torch", "jax"] | None = None
    device: str = "cpu"
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(Declaration).items():
            value = getattr(self, name)
            if annotation in (bool, bool | None) and value not in (True, False, None):
                raise ValueError(f"{name} must be True or False (got {value!r})")
            choices = _choices(annotation)
            if choices and value is not None and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)} (got {value!r})")
        for name in ("heads", "width", "vocabulary", "layers", "window", "prefix"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be >= 1 (got {size})")
        for name in ("scale", "softcap", "rotary_base", "rotary_share"):
            number = getattr(self, name)
            if number is not None and not 0 < number < float("inf"):
                raise ValueError(f"{name} must be > 0 (got {number})")
        if self.head_dim < 2:
            raise ValueError(
                f"head_dim must be >= 2 (got {self.head_dim}): one feature cannot tell keys apart"
            )
        if isinstance(self.pattern, Mask) and self.pattern.predicate is None:
            raise ValueError("pattern must be a mask without arrays, such as causal & window(5)")
        for feature in self.features:
            if feature not in FEATURES:
                raise ValueError(f"unknown feature {feature!r}; {suggestion(feature, FEATURES)}")
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        if kv_heads < 1 or self.heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads (got {kv_heads} and {self.heads})")

    @property
    def always_causal(self) -> bool:
        """Whether it is causal in every call."""
        if self.causal is None:
            return self.kind == "model" and "causal" not in self.features
        return self.causal

    def allowed(self, queries: int, keys: int, *, heads: int = 64, **options: Any) -> np.ndarray:
        """Return which query may attend to which key without an option `mask`.

        The shape is (queries, keys), or (heads, queries, keys) if a pattern is declared. options:
        those of the call that matter, causal and window. The last query has the position of the
        last key.
        """
        window = options.get("window")
        rows, columns = np.indices((queries, keys))
        rows = rows + keys - queries
        causal = options.get("causal") or self.always_causal
        allowed = columns <= rows if causal else np.ones_like(rows, bool)
        if self.pattern is not None:
            predicate: Any = getattr(self.pattern, "predicate", self.pattern)
            head = np.arange(heads)[:, None, None]
            allowed = np.array(predicate(np.zeros_like(head), head, rows, columns))
            allowed = np.broadcast_to(allowed, (heads, queries, keys))
        if self.window is not None:
            near = rows - columns < self.window
            allowed = allowed & (near if causal else near & (columns - rows < self.window))
        if self.prefix is not None:
            allowed = allowed | ((rows < self.prefix) & (columns < self.prefix))
        if window is not None:
            allowed = allowed & (columns <= rows) & (rows - columns < window)
        return allowed

    @property
    def order_free(self) -> bool:
        """Whether it has no mask and no positions, so that permuting tokens permutes outputs."""
        return not (
            self.always_causal or self.positions or self.window or self.prefix or self.pattern
        )

    @classmethod
    def of(cls, **declared: Any) -> Declaration:
        """Create a declaration; features may be one string, separated by commas.

        Raises ValueError for an unknown name (suggesting the nearest one) or an invalid value.
        """
        known = [field.name for field in fields(cls)]
        for name in declared:
            if name not in known:
                raise ValueError(f"unknown declaration {name!r}; {suggestion(name, known)}")
        for name in ("features", "skip"):
            names = declared.get(name) or ()
            names = names.split(",") if isinstance(names, str) else names
            declared[name] = tuple(part.strip() for part in names)
        return cls(**declared)


def _choices(annotation: Any) -> tuple[str, ...]:
    """Return the values of a Literal, or of a Literal in a union with None."""
    parts = [annotation, *get_args(annotation)]
    return next((get_args(part) for part in parts if getattr(part, "__origin__", 0) is Literal), ())
