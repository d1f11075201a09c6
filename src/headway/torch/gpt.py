"""GPT in PyTorch: tokens in, the scores of every next token out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.attention.arrays import Array
from headway.attention.dispatch import attend as default_attend
from headway.attention.dropout import Seed, dropout, fold
from headway.attention.masks import Mask, causal, padding
from headway.attention.positions import alibi, sinusoidal
from headway.ladder.rung import Rung
from headway.models.gpt import INITIAL, NORMALIZERS, GPTConfig, Names, in_place, initial
from headway.torch.layers import (
    Cache,
    GeluMLP,
    MultiHeadAttention,
    RelativeBias,
    RungAttention,
    SquaredReluMLP,
    SwigluMLP,
)
from headway.tracing import scope, tap

_MLPS = {"gelu": GeluMLP, "relu2": SquaredReluMLP, "swiglu": SwigluMLP}


def multi_head(config: GPTConfig, attend: Callable[..., Array] = default_attend) -> nn.Module:
    """The production attention of a GPT, with any kernel (`attend`)."""
    gpt2 = config.norm == "layer"
    if config.normalizer != "softmax":
        attend = partial(attend, normalizer=NORMALIZERS[config.normalizer])
    if config.scale is not None:
        attend = partial(attend, scale=config.scale)
    bias_of: Callable[[Tensor, Tensor], Tensor] | None = None
    if config.positions == "alibi":
        bias_of = partial(alibi, config.heads)
    if config.positions == "relative":
        bias_of = RelativeBias(config.heads, reach=config.context - 1)
    return MultiHeadAttention(
        config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        fused=gpt2,
        bias=gpt2,
        rotary=10000.0 if config.positions == "rotary" else None,
        qk_norm=config.eps if config.qk_norm else None,
        bias_of=bias_of,
        dropout=config.dropout,
        mask=causal if config.causal else None,
        attend=attend,
    )


def of_rung(rung: Rung, attend: Callable[..., Array] | None = None) -> Attention:
    """A rung of the ladder in the attention's place, see `models.gpt.in_place`."""

    def attention(config: GPTConfig) -> nn.Module:
        sizes, dropout, mask = in_place(rung, config)
        return RungAttention(
            rung,
            config.width,
            heads=sizes.heads,
            dropout=dropout,
            mask=mask,
            attend=attend,
        )

    return attention


Attention = Callable[[GPTConfig], nn.Module]


@final
class GPT(nn.Module):
    """A decoder after GPT-2, or a modern one: the config says which.

    attention: makes the attention of a layer; by default `multi_head`, or `of_rung(...)`.
    seed: the first values are a function of it and of the parameters' names, the same in every
        engine; PyTorch's own random state is left alone.
    """

    def __init__(
        self, config: GPTConfig, attention: Attention = multi_head, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        names = config.names
        with torch.random.fork_rng(devices=[]):  # the layers draw values, all replaced below
            parts: dict[str, nn.Module] = {
                names.embedding: nn.Embedding(config.vocabulary, config.width)
            }
            if config.positions == "learned":
                parts[names.positions] = nn.Embedding(config.context, config.width)
            parts[names.blocks] = nn.ModuleList(
                Block(config, attention) for _ in range(config.layers)
            )
            parts[names.final_norm] = _norm(config)
            self.add_module(names.body, nn.ModuleDict(parts))
            self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.lm_head.weight = parts[names.embedding].weight  # type: ignore[assignment]
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                value = initial(name, tuple(parameter.shape), config.layers, seed)
                parameter.copy_(torch.from_numpy(value))

    @property
    def can_cache(self) -> bool:
        """Whether the attention can go on from a cache: a rung sees its tokens whole, and where
        tokens see later ones all that came before changes with each."""
        return self.config.causal and all(
            isinstance(block.attention, MultiHeadAttention) for block in self.blocks
        )

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers, in order."""
        return self._part(self.config.names.blocks)  # type: ignore[return-value]

    def caches(self) -> list[Cache]:
        """An empty cache for each layer."""
        return [Cache(self.config.context) for _ in self.blocks]

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        mask: Mask | None = None,
        caches: Sequence[Cache] | None = None,
        starts: Int[Tensor, " batch"] | None = None,
        seed: Seed | None = None,
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """The logits of the token after each token.

        mask: on top of the causal one (padding, documents). caches: of the tokens before these.
        starts: the column in which each row's text begins, for rows padded at their left so that
            texts of different lengths end together; by default 0.
        seed: for dropout, while training. Raises ValueError beyond the context.
        """
        names, rate = self.config.names, self.config.dropout if self.training else 0.0
        before = 0 if caches is None else caches[0].length
        end = before + tokens.shape[-1]
        if end > self.config.context:
            raise ValueError(f"{end} tokens do not fit a context of {self.config.context}")
        x = self._part(names.embedding)(tokens)
        positions = torch.arange(before, end, device=x.device)
        if starts is not None:
            mask = ~padding(starts) if mask is None else mask & ~padding(starts)
            positions = (positions - starts[:, None]).clamp(min=0)
        if self.config.positions == "learned":
            x = x + self._part(names.positions)(positions)
        if self.config.positions == "sinusoidal":  # as large as the embeddings are at first
            waves = sinusoidal(positions.to(x.dtype), self.config.width)
            x = x + waves * (INITIAL * 2**0.5)
        x = tap("embedded", dropout(x, rate, fold(seed, 0)))
        for layer, block in enumerate(self.blocks):
            with scope(f"blocks.{layer}"):
                cache = None if caches is None else caches[layer]
                x = block(x, mask=mask, cache=cache, seed=fold(seed, 1 + layer))
        x = tap("final_norm", self._part(names.final_norm)(x))
        return tap("logits", self.lm_head(x))

    def _part(self, name: str) -> nn.Module:
        body: nn.ModuleDict = getattr(self, self.config.names.body)
        return body[name]


@final
class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): norms first, as in GPT-2."""

    def __init__(self, config: GPTConfig, attention: Attention) -> None:
        super().__init__()
        self.names: Names = config.names
        self.rate = config.dropout
        self.add_module(self.names.attention_norm, _norm(config))
        self.add_module(self.names.attention, attention(config))
        self.add_module(self.names.mlp_norm, _norm(config))
        self.add_module(self.names.mlp, _MLPS[config.mlp](config.width, config.hidden))

    @property
    def attention(self) -> nn.Module:
        """The attention of this layer."""
        module: nn.Module = getattr(self, self.names.attention)
        return module

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        *,
        mask: Mask | None = None,
        cache: Cache | None = None,
        seed: Seed | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """The residual stream after this layer."""
        attention_norm, attention, mlp_norm, mlp = self.children()
        rate = self.rate if self.training else 0.0
        normed = tap("attention_norm", attention_norm(x))
        with scope("attention"):
            found = attention(normed, mask=mask, cache=cache, seed=fold(seed, 0))
        x = tap("after_attention", x + dropout(found, rate, fold(seed, 1)))
        normed = tap("mlp_norm", mlp_norm(x))
        with scope("mlp"):
            thought = mlp(normed)
        return tap("after_mlp", x + dropout(thought, rate, fold(seed, 2)))


def _norm(config: GPTConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.width, eps=config.eps)
