"""What a user declares about an attention that is to be checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

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
        self: it has position information, such as rotary or learned positions.
    block
        self: it has a residual connection or an MLP around the attention.
    mask_true
        The meaning of True in its masks.
    mask_shape
        keys: masks are (batch, keys); full: (batch, 1, queries, keys).
    rotary
        The pairs of features that the option `positions` rotates.
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
    mask_true: Literal["attend", "masked"] = "attend"
    mask_shape: Literal["keys", "full"] = "keys"
    rotary: Literal["half", "interleaved"] = "half"
    features: tuple[str, ...] = ()
    engine: Literal["numpy", "torch", "jax"] | None = None
    device: str = "cpu"
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(Declaration).items():
            value = getattr(self, name)
            choices = _choices(annotation)
            if choices and value is not None and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)} (got {value!r})")
        for name in ("heads", "width", "vocabulary"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be >= 1 (got {size})")
        if self.head_dim < 2:
            raise ValueError(
                f"head_dim must be >= 2 (got {self.head_dim}): one feature cannot tell keys apart"
            )
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

    @property
    def order_free(self) -> bool:
        """Whether it has no causal mask and no positions, so permuting tokens permutes outputs."""
        return not self.always_causal and not self.positions

    @classmethod
    def of(cls, **declared: Any) -> Declaration:
        """Create a declaration; features may be one string, separated by commas.

        Raises ValueError for an unknown name (suggesting the nearest one) or an invalid value.
        """
        known = [field.name for field in fields(cls)]
        for name in declared:
            if name not in known:
                raise ValueError(f"unknown declaration {name!r}; {suggestion(name, known)}")
        features = declared.get("features") or ()
        features = features.split(",") if isinstance(features, str) else features
        return cls(**{**declared, "features": tuple(feature.strip() for feature in features)})


def _choices(annotation: Any) -> tuple[str, ...]:
    """Return the values of a Literal, or of a Literal in a union with None."""
    parts = [annotation, *get_args(annotation)]
    return next((get_args(part) for part in parts if getattr(part, "__origin__", 0) is Literal), ())
