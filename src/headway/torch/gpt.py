"""GPT in PyTorch: takes tokens and returns the logits of the next token at every position."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.attention import dispatch
from headway.attention.dropout import drop
from headway.attention.formula import Attend
from headway.attention.masks import both, padding
from headway.attention.positions import alibi, sinusoidal
from headway.attention.spec import DEFAULT, Spec, fold
from headway.ladder.rung import Rung
from headway.models.gpt import (
    SINUSOIDAL,
    GPTConfig,
    attention_spec,
    initial,
    rung_config,
    rung_spec,
)
from headway.torch.layers import (
    ACTIVATIONS,
    MLP,
    Cache,
    MultiHeadAttention,
    RelativeBias,
    RungAttention,
    rotation_of,
)
from headway.tracing import scope, tap

Stream = Float[Tensor, "batch tokens width"]
Attention = Callable[[GPTConfig], nn.Module]  # creates the attention of a layer


def multi_head(config: GPTConfig, attend: Attend = dispatch.run) -> MultiHeadAttention:
    """Create the multi-head attention of a config; attend: as in `MultiHeadAttention`."""
    kind, heads = config.positions.kind, config.attention.heads
    position_bias: Callable[[Tensor, Tensor], Tensor] | None = None
    if kind == "alibi":
        position_bias = partial(alibi, heads)
    if kind == "relative":
        position_bias = RelativeBias(heads, reach=config.context - 1)
    return MultiHeadAttention(
        config.width,
        heads=heads,
        kv_heads=config.attention.kv_heads,
        head_dim=config.d_k,
        linear_bias=config.has_bias(config.attention.qkv_bias),
        output_bias=config.has_bias(config.attention.output_bias),
        rotary=config.positions.rotary if kind == "rotary" else None,
        qk_norm=config.norm.eps if config.attention.qk_norm else None,
        position_bias=position_bias,
        spec=attention_spec(config),
        attend=attend,
    )


def of_rung(rung: Rung, attend: Attend | None = None) -> Attention:
    """Return a rung of the ladder as the attention of a layer."""

    def attention(config: GPTConfig) -> nn.Module:
        spec, heads = rung_spec(rung, config), rung_config(rung, config).heads
        return RungAttention(rung, config.width, heads=heads, spec=spec, attend=attend)

    return attention


@final
class GPT(nn.Module):
    """A decoder-only language model: GPT-2 or a newer variant, depending on the config.

    attention: creates the attention of a layer: `multi_head` or `of_rung(...)`.
    seed: the initial values depend only on it and on the parameters' names, and are the same in
        both engines; PyTorch's global random state is not changed. None: the values are arbitrary,
        because they will be replaced.
    """

    def __init__(
        self, config: GPTConfig, attention: Attention = multi_head, *, seed: int | None = 0
    ) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # the layers' random values are replaced
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            self.position_embedding = None
            if config.positions.kind == "learned":
                self.position_embedding = nn.Embedding(config.context, config.width)
            self.segment_embedding = None
            if config.segments:
                self.segment_embedding = nn.Embedding(config.segments, config.width)
            is_before = config.norm.placement == "before"
            self.embedding_norm = None if is_before else _norm(config)
            self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.layers))
            self.final_norm = _norm(config) if is_before else None
            self.transform = Transform(config) if config.output == "transform" else None
            has_bias = self.transform is not None
            self.head = nn.Linear(config.width, config.vocabulary, bias=has_bias)
        if config.tied:
            self.head.weight = self.embedding.weight
        if seed is None:
            return
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                value = initial(name, tuple(parameter.shape), config.layers, seed)
                parameter.copy_(torch.from_numpy(value))

    @property
    def can_cache(self) -> bool:
        """Whether the model can generate from caches. A rung needs the whole text every time;
        without a causal mask each new token changes the outputs of all earlier ones."""
        return self.config.attention.causal and all(
            isinstance(block.attention, MultiHeadAttention) for block in self.blocks
        )

    def caches(
        self, capacity: int | None = None, starts: Int[Tensor, " batch"] | None = None
    ) -> list[Cache]:
        """One empty cache per layer, for this number of tokens, by default the context.

        starts: as in `features`.
        """
        capacity = self.config.context if capacity is None else capacity
        return [Cache(capacity, starts) for _ in self.blocks]

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        spec: Spec = DEFAULT,
        *,
        caches: Sequence[Cache] | None = None,
        starts: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """Return the logits of the next token at every position; see `features` for arguments."""
        return self.logits(self.features(tokens, spec, caches=caches, starts=starts))

    def logits(self, features: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocabulary"]:
        """Return the logits of these features."""
        if self.transform is not None:
            features = self.transform(features)
        logits: Tensor = tap("logits", self.head(features))
        return logits

    def normalized(self, stream: Stream) -> Stream:
        """Return the residual stream after the last norm, if the config places one there."""
        return stream if self.final_norm is None else tap("final_norm", self.final_norm(stream))

    def features(
        self,
        tokens: Int[Tensor, "batch tokens"],
        spec: Spec = DEFAULT,
        *,
        caches: Sequence[Cache] | None = None,
        starts: Int[Tensor, " batch"] | None = None,
    ) -> Stream:
        """Return the residual stream after the last norm, which the head turns into logits.

        spec: options of this call: an extra mask that is combined with the causal one (padding,
            documents), the seed of dropout while training, the batch offset.
        caches: one per layer, with the keys and values of the preceding tokens; those of `tokens`
            are added to them.
        starts: for rows that are padded on the left, the column where the text of each row begins;
            by default 0. With caches, it is an argument of `caches`.
        Raises ValueError when there are more tokens than the context holds.
        """
        if caches is not None and starts is not None:
            raise ValueError("pass starts to model.caches(...), not together with caches")
        first = 0 if caches is None else caches[0].length
        end = first + tokens.shape[-1]
        if isinstance(first, Tensor):  # a fixed cache, whose arrays are longer than the text
            spec = spec._replace(offset=first)
        elif end > self.config.context:
            raise ValueError(f"{end} tokens do not fit a context of {self.config.context}")
        positions = columns = torch.arange(tokens.shape[-1], device=tokens.device) + first
        starts = starts if caches is None else caches[0].starts
        if starts is not None:
            spec = spec._replace(mask=both(spec.mask, ~padding(starts)))
            positions = (positions - starts[:, None]).clamp(min=0)
        x = self.embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        if self.config.positions.kind == "sinusoidal":  # scaled to the initial embeddings
            x = x + sinusoidal(positions, self.config.width, like=x) * SINUSOIDAL
        if self.segment_embedding is not None:
            x = x + self.segment_embedding.weight[0]
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        dropout = self.config.dropout if self.training else 0.0
        x = tap("embedded", drop(x, fold(spec._replace(dropout=dropout), 0)))
        rotary, rotation = None, {}  # computed once, if it is the same in all layers
        for layer, block in enumerate(self.blocks):
            of_layer = getattr(block.attention, "rotary", None)
            if of_layer is not None and of_layer is not rotary:
                rotary = of_layer
                cos_sin = rotation_of(rotary, self.config.d_k, columns, starts, end, like=x)
                rotation = {"rotation": cos_sin}
            with scope(f"blocks.{layer}"):
                cache = None if caches is None else caches[layer]
                x = block(x, fold(spec, 1 + layer), cache=cache, **rotation)
        return self.normalized(x)


@final
class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), as in GPT-2.

    If the config places the norm after the layer: norm(x + attention(x)), then norm(x + mlp(x)), as
    in BERT and Vaswani et al. 2017.
    """

    def __init__(self, config: GPTConfig, attention: Attention) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(
            config.width,
            config.mlp_width,
            config.mlp.activation,
            is_gated=config.mlp.is_gated,
            linear_bias=config.has_bias(config.mlp.bias),
        )
        self.dropout = config.dropout
        self.is_before = config.norm.placement == "before"

    def forward(self, x: Stream, spec: Spec = DEFAULT, **arguments: Any) -> Stream:
        """Return the residual stream after this layer.

        spec: as in `GPT.features`. arguments: those of the attention, such as a cache.
        """
        residual = spec._replace(dropout=self.dropout if self.training else 0.0)
        inputs = tap("attention_norm", self.attention_norm(x)) if self.is_before else x
        with scope("attention"):
            update = self.attention(inputs, fold(spec, 0), **arguments)
        x = x + drop(update, fold(residual, 1))
        x = tap("after_attention", x if self.is_before else self.attention_norm(x))
        inputs = tap("mlp_norm", self.mlp_norm(x)) if self.is_before else x
        with scope("mlp"):
            update = self.mlp(inputs)
        x = x + drop(update, fold(residual, 2))
        return tap("after_mlp", x if self.is_before else self.mlp_norm(x))


@final
class Transform(nn.Module):
    """norm(activation(linear(x))), before the output layer of BERT (Devlin et al. 2019)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.width, config.width)
        self.activation = ACTIVATIONS[config.mlp.activation]
        self.norm = _norm(config)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Return the transformed features."""
        return self.norm(self.activation(self.linear(x)))


def _norm(config: GPTConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm.kind == "layer" else nn.RMSNorm
    return kind(config.width, eps=config.norm.eps)
