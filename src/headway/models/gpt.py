"""The config of a GPT, and the names, shapes and initial values of its parameters.

GPT-2 (Radford et al. 2019) and its successors: a decoder with a norm before each layer. The presets
differ in positions, norm and MLP. With a norm after each layer and without the causal mask it is
BERT (Devlin et al. 2019). This module is independent of the engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_type_hints

import numpy as np
from jaxtyping import Float

from headway.attention.masks import causal, window
from headway.attention.normalizers import NORMALIZERS
from headway.attention.positions import Rotary
from headway.attention.spec import Spec
from headway.ladder.rung import Rung, RungConfig
from headway.models.parameters import Shape, at_least_one, generator, linear, norm, one_of
from headway.nearest import check_keys

# Position encodings: added to the embedding (learned, sinusoidal), none, by rotating queries and
# keys (rotary), or as a bias of the scores (alibi: a slope per head, relative: a learned table).
POSITIONS = ("learned", "none", "sinusoidal", "rotary", "alibi", "relative")

ROTARY = Rotary()

# The activation of each kind of MLP without a gate, and of each kind with one. The first has two
# matrices and the second three, so widths of 4 and 8/3 times that of the model give the same number
# of parameters.
ACTIVATIONS = ("gelu", "gelu-exact", "quick-gelu", "relu", "relu2", "silu", "tanh")
GATED: Mapping[str, str] = MappingProxyType(
    {"swiglu": "silu", "geglu": "gelu", "geglu-exact": "gelu-exact", "reglu": "relu"}
)
MLP_KINDS = (*ACTIVATIONS, *GATED)

INITIAL = 0.02  # the standard deviation of the initial values of a parameter
SINUSOIDAL = INITIAL * 2**0.5  # scales sinusoidal positions to the initial embeddings


@dataclass(frozen=True)
class AttentionConfig:
    """The config of the attention in every layer.

    Attributes
    ----------
    heads
        Heads of attention in each layer.
    kv_heads
        Heads of keys and values; by default as many as heads.
    d_k
        Features of one head; by default width / heads.
    qk_norm
        Whether the queries and keys of each head are normalized by RMSNorm (Henry et al. 2020).
    causal
        Whether no token attends to a later one. False for BERT; the lab uses it to show a leak.
    window
        Number of tokens that a token attends to, itself included; by default all (Mistral 7B,
        Jiang et al. 2023).
    qkv_bias
        Whether the projections to queries, keys and values have biases; by default only with
        LayerNorm.
    output_bias
        Whether the output projection has a bias; by default only with LayerNorm.
    scale
        Scale of the scores; by default 1 / sqrt(d_k).
    normalizer
        Function from scores to weights: softmax, sparsemax or entmax15.
    """

    heads: int
    kv_heads: int | None = None
    d_k: int | None = None
    qk_norm: bool = False
    causal: bool = True
    window: int | None = None
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    scale: float | None = None
    normalizer: str = "softmax"

    def __post_init__(self) -> None:
        at_least_one(self, "heads", "kv_heads", "d_k", "window")
        one_of("normalizer", self.normalizer, NORMALIZERS)
        if self.heads % self.groups:
            raise ValueError(f"kv_heads must divide heads (got {self.groups} and {self.heads})")
        if self.window is not None and not self.causal:
            raise ValueError("a window needs causal attention; remove window or causal=False")

    @property
    def groups(self) -> int:
        """The number of heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads


@dataclass(frozen=True)
class PositionsConfig:
    """The position encoding of the model.

    Attributes
    ----------
    kind
        learned, none, sinusoidal, rotary, alibi or relative.
    rotary
        Base and scaling of rotary positions.
    """

    kind: str = "learned"
    rotary: Rotary = ROTARY

    def __post_init__(self) -> None:
        one_of("positions", self.kind, POSITIONS)


@dataclass(frozen=True)
class NormConfig:
    """The normalization of the residual stream.

    Attributes
    ----------
    kind
        layer: LayerNorm, with a bias; rms: RMSNorm, without one.
    eps
        Number that is added to the variance.
    placement
        before: each layer reads the normalized residual stream; after: the sum of stream and update
        is normalized, and so is the embedding (BERT).
    """

    kind: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5
    placement: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        one_of("norm", self.kind, ("layer", "rms"))
        one_of("placement", self.placement, ("before", "after"))


@dataclass(frozen=True)
class MLPConfig:
    """The MLP of every layer.

    Attributes
    ----------
    kind
        An activation: gelu (tanh approximation), gelu-exact, quick-gelu, relu, relu2 (squared ReLU,
        So et al. 2021), silu or tanh. Or a gated one (Shazeer 2020): swiglu, geglu, geglu-exact or
        reglu.
    width
        Features inside the MLP; by default 4 times the width, 8/3 times if gated.
    bias
        Whether its linear layers have biases; by default only with LayerNorm.
    """

    kind: str = "gelu"
    width: int | None = None
    bias: bool | None = None

    def __post_init__(self) -> None:
        one_of("mlp", self.kind, MLP_KINDS)
        at_least_one(self, "width")

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.kind in GATED

    @property
    def activation(self) -> str:
        """The activation, one of ACTIVATIONS."""
        return GATED.get(self.kind, self.kind)


@dataclass(frozen=True)
class GPTConfig:
    """The config of a decoder. Raises ValueError for sizes that do not match.

    Attributes
    ----------
    vocabulary
        Number of different tokens.
    context
        Largest number of tokens in a sequence.
    width
        Features of a token in the residual stream.
    layers
        Number of blocks; a block has an attention layer and an MLP.
    attention, positions, norm, mlp
        The configs of these parts.
    dropout
        Probability that an attention weight or a feature is dropped in training.
    tied
        Whether the output layer uses the matrix of the embedding.
    segments
        Number of kinds of segments, each with an embedding (BERT). All tokens are of the first.
    output
        linear: the output layer is a matrix; transform: a linear layer, the activation of the MLP
        and a norm come before it, and it has a bias (BERT).
    """

    vocabulary: int
    context: int
    width: int
    layers: int
    attention: AttentionConfig
    positions: PositionsConfig = PositionsConfig()
    norm: NormConfig = NormConfig()
    mlp: MLPConfig = MLPConfig()
    dropout: float = 0.0
    tied: bool = True
    segments: int = 0
    output: Literal["linear", "transform"] = "linear"

    def __post_init__(self) -> None:
        at_least_one(self, "vocabulary", "context", "width", "layers")
        one_of("output", self.output, ("linear", "transform"))
        heads = self.attention.heads
        if self.attention.d_k is None and self.width % heads:
            raise ValueError(f"heads must divide the width (got {heads} and {self.width})")
        if self.positions.kind == "rotary" and self.d_k % 2:
            raise ValueError(f"rotary positions need an even width of a head (got {self.d_k})")
        if self.positions.kind == "sinusoidal" and self.width % 2:
            raise ValueError(f"sinusoidal positions need an even width (got {self.width})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1 (got {self.dropout})")

    @property
    def d_k(self) -> int:
        """Features of one head."""
        d_k = self.attention.d_k
        return self.width // self.attention.heads if d_k is None else d_k

    @property
    def mlp_width(self) -> int:
        """The width inside the MLP."""
        ratio = 8 / 3 if self.mlp.is_gated else 4
        return round(self.width * ratio) if self.mlp.width is None else self.mlp.width

    @property
    def is_masked(self) -> bool:
        """Whether the model predicts masked tokens, not the next one."""
        return self.output == "transform"

    def has_bias(self, choice: bool | None) -> bool:
        """Whether a linear layer has a bias: as chosen, by default only with LayerNorm."""
        return self.norm.kind == "layer" if choice is None else choice


# The settings of each preset, nested as in a recipe; the caller adds the sizes. modern is the
# architecture of Qwen 3 (Yang et al. 2025); docs/training.md compares it with two others.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gpt2": {},
        "modern": {
            "attention": {"qk_norm": True},
            "positions": {"kind": "rotary"},
            "norm": {"kind": "rms"},
            "mlp": {"kind": "swiglu"},
        },
    }
)

_Config = TypeVar("_Config")


def config_from(kind: type[_Config], settings: Mapping[str, Any], what: str) -> _Config:
    """Make a config dataclass from nested tables, such as those of JSON and TOML.

    Raises ValueError for an unknown key, with the nearest known key, and for a missing key.
    """
    check_settings(kind, settings, what)
    hints = get_type_hints(kind)
    values = {
        name: config_from(hints[name], value, f"{what}.{name}")
        if is_dataclass(hints[name])
        else value
        for name, value in settings.items()
    }
    try:
        return kind(**values)
    except TypeError as error:
        missing = str(error).partition("argument")[2].lstrip("s: ")
        raise ValueError(f"{what} must have {missing}; add it") from None


def check_settings(kind: type[Any], settings: Any, what: str) -> None:
    """Raise ValueError for an unknown key in nested tables, with the nearest known key."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"{what} must be a table (got {settings!r})")
    hints = get_type_hints(kind)
    if unknown := [name for name in settings if name not in hints]:
        tables = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
        inner = [
            f"{name}.{field.name}" for name, table in tables.items() for field in fields(table)
        ]
        check_keys(what, unknown[:1], [*hints, *inner])
    for name, value in settings.items():
        if is_dataclass(hints[name]):
            check_settings(hints[name], value, f"{what}.{name}")


def preset(name: str, settings: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> GPTConfig:
    """The config of a preset, updated with settings that are nested as in a recipe's table [model].

    `preset("modern", vocabulary=65, context=64, width=128, layers=4, attention={"heads": 4})`.
    Raises ValueError for an unknown preset or key.
    """
    one_of("preset", name, PRESETS)
    return config_from(GPTConfig, overlaid(PRESETS[name], {**settings, **more}), "model")


def flat(config: Any, table: str = "") -> dict[str, Any]:
    """The settings of a config by name; nested ones have names such as "attention.heads"."""
    settings: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        name = table + field.name
        settings |= flat(value, f"{name}.") if is_dataclass(value) else {name: value}
    return settings


def unequal(config: GPTConfig, other: GPTConfig) -> list[str]:
    """The names of the settings in which two models differ; None and the default are equal."""
    one, two = flat(_resolved(config)), flat(_resolved(other))
    return [name for name in one if one[name] != two[name]]


def _resolved(config: GPTConfig) -> GPTConfig:
    """The config with the values that None stands for."""
    attention, mlp = config.attention, config.mlp
    return replace(
        config,
        attention=replace(
            attention,
            kv_heads=attention.groups,
            d_k=config.d_k,
            qkv_bias=config.has_bias(attention.qkv_bias),
            output_bias=config.has_bias(attention.output_bias),
        ),
        mlp=replace(mlp, width=config.mlp_width, bias=config.has_bias(mlp.bias)),
    )


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Update nested tables with the values of other ones, recursively."""
    merged = dict(below)
    for name, value in above.items():
        are_tables = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = overlaid(merged[name], value) if are_tables else value
    return merged


def attention_spec(config: GPTConfig) -> Spec:
    """The options of the attention of every layer."""
    attention, mask = config.attention, None
    if attention.causal:
        mask = causal if attention.window is None else window(attention.window)
    return Spec(
        mask=mask,
        scale=attention.scale,
        normalizer=NORMALIZERS[attention.normalizer],
        dropout=config.dropout,
    )


def rung_spec(rung: Rung, config: GPTConfig) -> Spec:
    """The Spec for a model that uses a rung as its attention; rungs that are not causal get a mask.

    Raises ValueError for settings that rungs do not support.
    """
    attention, positions = config.attention, config.positions.kind
    unsupported = {
        f"{positions} positions": positions in ("rotary", "alibi", "relative"),
        "qk_norm": attention.qk_norm,
        "grouped heads (kv_heads)": attention.groups != attention.heads,
        "scale": attention.scale is not None,
        "normalizer": attention.normalizer != "softmax",
        "d_k": attention.d_k is not None,
        "window": attention.window is not None,
        "qkv_bias": attention.qkv_bias is not None,
        "output_bias": attention.output_bias is not None,
        "causal=False": not attention.causal and rung.causal,
    }
    for name, is_set in unsupported.items():
        if is_set:
            raise ValueError(
                f"rung {rung.name!r} does not support {name}; remove one of the two settings"
            )
    return Spec(
        mask=causal if attention.causal and not rung.causal else None,
        dropout=config.dropout if rung.has_dropout else 0.0,
    )


def rung_config(rung: Rung, config: GPTConfig) -> RungConfig:
    """The sizes of a rung that is used as the attention of a GPT."""
    return RungConfig(config.width, config.width, config.attention.heads if rung.has_heads else 1)


def shapes(config: GPTConfig, attention: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """The table of parameters: name -> shape. Matrices `*.weight` are (d_out, d_in).

    attention: the parameters of the attention of one layer, by default `attention_shapes(config)`.
    """
    attention = attention_shapes(config) if attention is None else attention
    width, has_norm_bias = config.width, config.norm.kind == "layer"
    is_before, has_mlp_bias = config.norm.placement == "before", config.has_bias(config.mlp.bias)
    table: dict[str, Shape] = {"embedding.weight": (config.vocabulary, width)}
    if config.positions.kind == "learned":
        table["position_embedding.weight"] = (config.context, width)
    if config.segments:
        table["segment_embedding.weight"] = (config.segments, width)
    if not is_before:
        table |= norm("embedding_norm", width, has_norm_bias)
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        table |= norm(f"{block}.attention_norm", width, has_norm_bias)
        table |= {f"{block}.attention.{name}": shape for name, shape in attention.items()}
        table |= norm(f"{block}.mlp_norm", width, has_norm_bias)
        for name in ("gate", "up") if config.mlp.is_gated else ("up",):
            table |= linear(f"{block}.mlp.{name}", width, config.mlp_width, has_mlp_bias)
        table |= linear(f"{block}.mlp.down", config.mlp_width, width, has_mlp_bias)
    if is_before:
        table |= norm("final_norm", width, has_norm_bias)
    if config.output == "transform":
        table |= linear("transform.linear", width, width)
        table |= norm("transform.norm", width, has_norm_bias)
        table["head.bias"] = (config.vocabulary,)
    if not config.tied:
        table["head.weight"] = (config.vocabulary, width)
    return table


def attention_shapes(config: GPTConfig) -> dict[str, Shape]:
    """The parameters of the multi-head attention of one layer."""
    width, d_k = config.width, config.d_k
    d_q, d_kv = config.attention.heads * d_k, config.attention.groups * d_k
    has_bias = config.has_bias(config.attention.qkv_bias)
    table = {
        **linear("q", width, d_q, has_bias),
        **linear("k", width, d_kv, has_bias),
        **linear("v", width, d_kv, has_bias),
        **linear("output", d_q, width, config.has_bias(config.attention.output_bias)),
    }
    if config.attention.qk_norm:
        table |= {"q_norm.weight": (d_k,), "k_norm.weight": (d_k,)}
    if config.positions.kind == "relative":
        table["position_bias.table"] = (config.attention.heads, 2 * config.context - 1)
    return table


def initial(name: str, shape: Shape, layers: int, seed: int) -> Float[np.ndarray, "..."]:
    """The initial value of a parameter, which depends only on its name and the seed.

    Normal with a standard deviation of 0.02, divided by sqrt(2 * layers) for the matrices whose
    output is added to the residual stream. Biases are 0 and norms 1 (Radford et al. 2019, 2.3).
    """
    owner, _, kind = name.rpartition(".")
    if kind == "bias":
        return np.zeros(shape, dtype=np.float32)
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    is_residual = owner.endswith((".attention.output", ".mlp.down")) or kind == "W_output"
    deviation = INITIAL / (2 * layers) ** 0.5 if is_residual else INITIAL
    return (deviation * generator(name, seed).standard_normal(shape)).astype(np.float32)
