"""GPT: the sizes, the names and the first values of its parameters; no engine.

With `norm="layer"` the architecture and the names are GPT-2's (Radford et al. 2019), with
`norm="rms"` they are those of Llama and Qwen 3, as Hugging Face writes both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from zlib import crc32

import numpy as np
from jaxtyping import Float

from headway.attention.masks import Mask, causal
from headway.attention.normalizers import Normalizer, entmax15, softmax, sparsemax
from headway.ladder.rung import Rung, RungConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class GPTConfig:
    """The sizes and choices of a decoder. Raises ValueError for sizes that do not fit together.

    positions: see POSITIONS. norm: LayerNorm with biases everywhere, or RMSNorm without. mlp: GELU
    (tanh's) or squared ReLU (So et al. 2021) of width 4 * width, or SwiGLU (Shazeer 2020) of the
    same number of parameters. qk_norm: RMSNorm of each head's queries and keys (Henry et al. 2020).
    tied: the head is the embedding, transposed. eps: of the norms. causal: False lets every token
    see the later ones: the leak, which the lab shows. scale: of the scores. normalizer: see
    NORMALIZERS. d_k: features of one head. d_mlp: the width inside the MLP.
    """

    vocabulary: int
    context: int
    width: int
    layers: int
    heads: int
    kv_heads: int | None = None  # as many as heads
    positions: Literal["learned", "none", "sinusoidal", "rotary", "alibi", "relative"] = "learned"
    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "relu2", "swiglu"] = "gelu"
    qk_norm: bool = False
    tied: bool = True
    dropout: float = 0.0
    eps: float = 1e-5
    causal: bool = True
    scale: float | None = None  # 1 / sqrt(d_k)
    normalizer: Literal["softmax", "sparsemax", "entmax15"] = "softmax"
    d_k: int | None = None  # width / heads
    d_mlp: int | None = None  # as the kind of MLP has it

    def __post_init__(self) -> None:
        sizes = ("vocabulary", "context", "width", "layers", "heads", "d_k", "d_mlp")
        for name in sizes:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more: {getattr(self, name)} is not")
        if self.d_k is None and self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        if self.d_k is not None and self.norm == "layer":
            raise ValueError("d_k is for norm 'rms': GPT-2's heads have width / heads features")
        if self.groups < 1 or self.heads % self.groups:
            raise ValueError(f"{self.groups} kv_heads do not divide {self.heads} heads")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs of features: a head of {self.head_dim} is odd"
            )
        if self.positions == "sinusoidal" and self.width % 2:
            raise ValueError(f"sinusoidal positions come in pairs: a width of {self.width} is odd")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share from 0 to below 1: {self.dropout} is not")
        choices: dict[str, Iterable[str]] = {"norm": ("layer", "rms"), "mlp": MLP_WIDTHS}
        choices |= {"positions": POSITIONS, "normalizer": NORMALIZERS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is one of {', '.join(allowed)}: {getattr(self, name)!r} is not"
                )

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.width // self.heads if self.d_k is None else self.d_k

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden(self) -> int:
        """The width inside the MLP."""
        return round(self.width * MLP_WIDTHS[self.mlp]) if self.d_mlp is None else self.d_mlp

    @property
    def names(self) -> Names:
        """What the parts are called."""
        return GPT2_NAMES if self.norm == "layer" else LLAMA_NAMES


INITIAL = 0.02  # the standard deviation of a parameter's first values

# Relative to the model's: three matrices of 8/3 hold as many parameters as two of 4.
MLP_WIDTHS = {"gelu": 4.0, "relu2": 4.0, "swiglu": 8 / 3}

# How a token's place reaches the model: added to the embedding (a learnt row of a table, or sines),
# not at all, turned into queries and keys, or as a bias of the scores (a slope, or a learnt table).
POSITIONS = ("learned", "none", "sinusoidal", "rotary", "alibi", "relative")

NORMALIZERS: Mapping[str, Normalizer] = MappingProxyType(
    {"softmax": softmax, "sparsemax": sparsemax, "entmax15": entmax15}
)

# What a preset decides; the sizes are the caller's.
GPT2: Mapping[str, Any] = MappingProxyType({})
MODERN: Mapping[str, Any] = MappingProxyType(
    {"positions": "rotary", "norm": "rms", "mlp": "relu2", "qk_norm": True}
)
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType({"gpt2": GPT2, "modern": MODERN})


class Names(NamedTuple):
    """Hugging Face's name for each part of the architecture."""

    body: str
    embedding: str
    positions: str
    blocks: str
    attention_norm: str
    attention: str
    mlp_norm: str
    mlp: str
    final_norm: str


GPT2_NAMES = Names("transformer", "wte", "wpe", "h", "ln_1", "attn", "ln_2", "mlp", "ln_f")
LLAMA_NAMES = Names(
    *("model", "embed_tokens", "embed_positions", "layers", "input_layernorm", "self_attn"),
    *("post_attention_layernorm", "mlp", "norm"),
)


def shapes(config: GPTConfig, attention: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """The table: name -> shape of every parameter.

    GPT-2's matrices are (d_in, d_out), Llama's (d_out, d_in), as in their files.
    attention: the parameters of one layer's, by default those of `attention_shapes`.
    """
    attention = attention_shapes(config) if attention is None else attention
    names, width = config.names, config.width
    table: dict[str, Shape] = {f"{names.body}.{names.embedding}.weight": (config.vocabulary, width)}
    if config.positions == "learned":
        table[f"{names.body}.{names.positions}.weight"] = (config.context, width)
    for layer in range(config.layers):
        block = f"{names.body}.{names.blocks}.{layer}"
        table |= _norm(f"{block}.{names.attention_norm}", config)
        table |= {f"{block}.{names.attention}.{n}": s for n, s in attention.items()}
        table |= _norm(f"{block}.{names.mlp_norm}", config)
        table |= {f"{block}.{names.mlp}.{n}": s for n, s in _mlp(config).items()}
    table |= _norm(f"{names.body}.{names.final_norm}", config)
    if not config.tied:
        table["lm_head.weight"] = (config.vocabulary, width)
    return table


def initial(name: str, shape: Shape, layers: int, seed: int) -> Float[np.ndarray, "..."]:
    """A parameter's first value, a function of the seed and its name: the same in every engine.

    Normal, 0.02 wide, and narrower by sqrt(2 * layers) where a block writes to the residual
    stream; biases 0, norms 1  (Radford et al. 2019, section 2.3).
    """
    owner, _, kind = name.rpartition(".")
    if kind == "bias":
        return np.zeros(shape, dtype=np.float32)
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    writes = owner.endswith(("c_proj", "o_proj", "down_proj")) or kind == "W_output"
    width = INITIAL / (2 * layers) ** 0.5 if writes else INITIAL
    generator = np.random.Generator(np.random.Philox(key=[seed, crc32(name.encode())]))
    return (width * generator.standard_normal(shape)).astype(np.float32)


class InPlace(NamedTuple):
    """What a rung of the ladder is told when it stands in the attention's place."""

    sizes: RungConfig
    dropout: float  # of the weights
    mask: Mask | None  # on top of its own


def in_place(rung: Rung, config: GPTConfig) -> InPlace:
    """A rung in the attention's place: those that are not causal by themselves get the mask.

    Heads and dropout of the weights go to the rungs that have them. Raises ValueError for what
    only multi-head attention has.
    """
    extra = {
        f"{config.positions} positions": config.positions in ("rotary", "alibi", "relative"),
        "qk_norm": config.qk_norm,
        "grouped heads": config.groups != config.heads,
        "scale of its own": config.scale is not None,
        "other normalizer": config.normalizer != "softmax",
        "other d_k": config.d_k is not None,
        "way to see later tokens": not config.causal and "attend" in rung.options,
    }
    for name, wanted in extra.items():
        if wanted:
            raise ValueError(f"the rung {rung.name!r} has no {name}: leave the rung out")
    heads = config.heads if "heads" in rung.options else 1
    return InPlace(
        sizes=RungConfig(config.width, config.width, heads),
        dropout=config.dropout if "dropout" in rung.options else 0.0,
        mask=None if "attend" in rung.options or not config.causal else causal,
    )


def _norm(name: str, config: GPTConfig) -> dict[str, Shape]:
    one: dict[str, Shape] = {f"{name}.weight": (config.width,)}
    return one | ({f"{name}.bias": (config.width,)} if config.norm == "layer" else {})


def attention_shapes(config: GPTConfig) -> dict[str, Shape]:
    """The parameters of one layer's multi-head attention."""
    width, head_dim = config.width, config.head_dim
    q_width, kv_width = config.heads * head_dim, config.groups * head_dim
    table: dict[str, Shape] = {}
    if config.positions == "relative":
        table["bias_of.table"] = (config.heads, 2 * config.context - 1)
    if config.norm == "layer":
        qkv_width = q_width + 2 * kv_width
        table |= {"c_attn.weight": (width, qkv_width), "c_attn.bias": (qkv_width,)}
        table |= {"c_proj.weight": (q_width, width), "c_proj.bias": (width,)}
    else:
        table |= {"q_proj.weight": (q_width, width), "k_proj.weight": (kv_width, width)}
        table |= {"v_proj.weight": (kv_width, width), "o_proj.weight": (width, q_width)}
    if config.qk_norm:
        table |= {"q_norm.weight": (head_dim,), "k_norm.weight": (head_dim,)}
    return table


def _mlp(config: GPTConfig) -> dict[str, Shape]:
    width, hidden = config.width, config.hidden
    if config.mlp == "gelu":
        return {
            "c_fc.weight": (width, hidden),
            "c_fc.bias": (hidden,),
            "c_proj.weight": (hidden, width),
            "c_proj.bias": (width,),
        }
    gate: dict[str, Shape] = {"gate_proj.weight": (hidden, width)} if config.mlp == "swiglu" else {}
    return gate | {"up_proj.weight": (hidden, width), "down_proj.weight": (width, hidden)}
