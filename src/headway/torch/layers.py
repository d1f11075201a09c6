"""The layers of the PyTorch engine: attention as a module, and what stands around it.

The mathematics is that of `parts`; what is here is state: parameters, and the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.attention.arrays import Array
from headway.attention.dispatch import attend as default_attend
from headway.attention.dropout import Seed
from headway.attention.formula import MaskLike, attention
from headway.attention.heads import merge, split
from headway.attention.masks import Mask, both, causal
from headway.attention.positions import relative, rotary
from headway.attention.projections import output, project, project_fused
from headway.attention.scores import tanh_sum
from headway.ladder.rung import Rung, RungConfig
from headway.tracing import tap

Sequence_ = Float[Tensor, "batch tokens width"]


@final
class Cache:
    """The keys and values of the tokens so far, for one layer; never copied as it grows.

    capacity: the tokens that it can hold. The memory is taken at the first `extend`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(
        self,
        keys: Float[Tensor, "batch heads tokens d_k"],
        values: Float[Tensor, "batch heads tokens d_v"],
    ) -> tuple[Tensor, Tensor]:
        """Add tokens; all keys and values so far. Raises ValueError beyond the capacity."""
        end = self.length + keys.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, not {end}")
        if self._keys is None or self._values is None:
            self._keys = keys.new_empty((*keys.shape[:-2], self.capacity, keys.shape[-1]))
            self._values = values.new_empty((*values.shape[:-2], self.capacity, values.shape[-1]))
        self._keys[..., self.length : end, :] = keys
        self._values[..., self.length : end, :] = values
        self.length = end
        return self.held

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """All keys and values so far. Raises ValueError when there are none."""
        if self._keys is None or self._values is None:
            raise ValueError("the cache is empty")
        return self._keys[..., : self.length, :], self._values[..., : self.length, :]

    def __getitem__(self, rows: Int[Tensor, " rows"]) -> Cache:
        """The same of these rows of the batch, in this order, each as often as it is named."""
        chosen = Cache(self.capacity)
        if self.length:
            keys, values = self.held
            chosen.extend(keys[rows], values[rows])
        return chosen


@final
class Projection(nn.Module):
    """x @ weight + bias with weight (d_in, d_out): GPT-2's orientation, as in its files."""

    def __init__(self, d_in: int, d_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_in, d_out))
        nn.init.normal_(self.weight, std=d_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.mT, self.bias)


@final
class MultiHeadAttention(nn.Module):
    """Multi-head attention: project -> split -> (rotary, cache) -> attend -> merge -> output.

    d_in, d_out: features of the input and of the output. kv_heads: fewer heads of keys and values
    (grouped queries); head_dim: by default d_out // heads.
    fused: one matrix c_attn (d_in, d_q + 2 * d_kv) and c_proj, as in GPT-2; otherwise q_proj,
        k_proj, v_proj, o_proj (d_out, d_in), as in Llama.
    rotary: the base of rotary positions (10,000 in Llama), or None.
    qk_norm: the eps of an RMSNorm of each head's queries and keys, or None.
    bias_of: from the positions of queries and keys to a bias (heads, Tq, Tk) of the scores, ALiBi's
        or a `RelativeBias`, which learns; or None.
    mask: who may attend to whom, always; causal unless told otherwise, None for everybody.
    dropout: of the weights while training; `forward` then needs a seed.
    attend: the function that does the work: `functools.partial(headway.attend, kernel="plain")`.

    Raises ValueError when the heads do not divide the width.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int | None = None,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        fused: bool = False,
        bias: bool = False,
        rotary: float | None = None,
        qk_norm: float | None = None,
        bias_of: Callable[[Tensor, Tensor], Tensor] | None = None,
        dropout: float = 0.0,
        mask: MaskLike = causal,
        attend: Callable[..., Array] = default_attend,
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        if head_dim is None:
            head_dim = RungConfig(d_in, d_out, heads).d_head
        if self.kv_heads < 1 or heads % self.kv_heads:
            raise ValueError(f"{self.kv_heads} kv_heads do not divide {heads} heads")
        d_q, d_kv = heads * head_dim, self.kv_heads * head_dim
        if fused:
            self.c_attn = Projection(d_in, d_q + 2 * d_kv, bias)
            self.c_proj = Projection(d_q, d_out, bias)
        else:
            self.q_proj = nn.Linear(d_in, d_q, bias)
            self.k_proj = nn.Linear(d_in, d_kv, bias)
            self.v_proj = nn.Linear(d_in, d_kv, bias)
            self.o_proj = nn.Linear(d_q, d_out, bias)
        if qk_norm is not None:
            self.q_norm = nn.RMSNorm(head_dim, eps=qk_norm)
            self.k_norm = nn.RMSNorm(head_dim, eps=qk_norm)
        self.fused, self.rotary, self.qk_norm, self.bias_of = fused, rotary, qk_norm, bias_of
        self.dropout, self.mask, self.attend = dropout, mask, attend

    def forward(
        self,
        x: Float[Tensor, "batch tokens d_in"],
        *,
        mask: Mask | None = None,
        cache: Cache | None = None,
        seed: Seed | None = None,
    ) -> Float[Tensor, "batch tokens d_out"]:
        """What each token found.

        mask: on top of the module's own. cache: the tokens before these, which it joins.
        Raises ValueError for dropout without a seed, and when the cache is full.
        """
        queries, keys, values = self._project(x)
        queries = split(queries, self.heads)
        keys, values = split(keys, self.kv_heads), split(values, self.kv_heads)
        if self.qk_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        first = 0 if cache is None else cache.length
        positions = torch.arange(first, first + x.shape[-2], device=x.device)
        if self.rotary is not None:
            queries = rotary(queries, positions, self.rotary)
            keys = rotary(keys, positions, self.rotary)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        bias = None
        if self.bias_of is not None:
            seen = torch.arange(keys.shape[-2], device=x.device)
            bias = self.bias_of(positions, seen).to(x.dtype)
        context = self.attend(
            queries,
            keys,
            values,
            mask=_together(self.mask, mask),
            dropout=self.dropout if self.training else 0.0,
            seed=seed,
            **({} if bias is None else {"bias": bias}),
        )
        return self._output(merge(context))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.fused:
            d_q = self.c_proj.weight.shape[0]
            return project_fused(x, self.c_attn.weight, self.c_attn.bias, d_q=d_q)
        layers = (self.q_proj, self.k_proj, self.v_proj)
        weights, biases = (layer.weight.mT for layer in layers), (layer.bias for layer in layers)
        return project(x, *weights, *biases)

    def _output(self, context: Tensor) -> Tensor:
        if self.fused:
            found = output(context, self.c_proj.weight, self.c_proj.bias)
        else:
            found = output(context, self.o_proj.weight.mT, self.o_proj.bias)
        return tap("output", found)


@final
class CrossAttention(nn.Module):
    """Multi-head attention whose queries come from one sequence, keys and values from another.

    Vaswani et al. 2017, section 3.2.3. d_in: features of both, and of the output.
    """

    def __init__(
        self,
        d_in: int,
        *,
        heads: int,
        dropout: float = 0.0,
        attend: Callable[..., Array] = default_attend,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.attend = heads, dropout, attend
        self.q_proj, self.k_proj = nn.Linear(d_in, d_in), nn.Linear(d_in, d_in)
        self.v_proj, self.o_proj = nn.Linear(d_in, d_in), nn.Linear(d_in, d_in)

    def forward(
        self,
        x: Float[Tensor, "batch queries d_in"],
        memory: Float[Tensor, "batch keys d_in"],
        *,
        mask: MaskLike = None,
        cache: Cache | None = None,
        seed: Seed | None = None,
    ) -> Float[Tensor, "batch queries d_in"]:
        """What each token of x found in the memory.

        mask: of the memory's padding. cache: keeps the memory's keys and values from the first
        call, as the memory stays while x goes on. Raises ValueError for dropout without a seed.
        """
        queries = split(self.q_proj(x), self.heads)
        if cache is not None and cache.length:
            keys, values = cache.held
        else:
            keys = split(self.k_proj(memory), self.heads)
            values = split(self.v_proj(memory), self.heads)
            if cache is not None:
                keys, values = cache.extend(keys, values)
        dropout = self.dropout if self.training else 0.0
        context = self.attend(queries, keys, values, mask=mask, dropout=dropout, seed=seed)
        return tap("output", self.o_proj(merge(context)))


@final
class AdditiveAttention(nn.Module):
    """score(s, h) = v . tanh(s W_query + h W_key)  (Bahdanau et al. 2015, appendix A.1.2).

    Keys are projected once, by `keys`, and met by one query after another.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W_query = nn.Parameter(torch.empty(width, width))
        self.W_key = nn.Parameter(torch.empty(width, width))
        self.v = nn.Parameter(torch.empty(width))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=width**-0.5)

    def keys(self, memory: Float[Tensor, "batch keys width"]) -> Tensor:
        """The memory, projected."""
        return memory @ self.W_key

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        keys: Float[Tensor, "batch keys width"],
        memory: Float[Tensor, "batch keys width"],
        *,
        mask: MaskLike = None,
    ) -> Float[Tensor, "batch queries width"]:
        """The mean of the memory, weighted by how well its keys fit each query."""
        queries = x @ self.W_query
        with_head = (each[:, None] for each in (queries, keys, memory))
        fit = partial(tanh_sum, v=self.v)
        return attention(*with_head, mask=mask, scale=1.0, products=fit)[:, 0]


@final
class ProductAttention(nn.Module):
    """score(s, h) = s W_query . h, Luong's "general", or s . h, "dot"  (Luong et al. 2015)."""

    def __init__(self, width: int, general: bool) -> None:
        super().__init__()
        self.general = general
        if general:
            self.W_query = nn.Parameter(torch.empty(width, width))
            nn.init.normal_(self.W_query, std=width**-0.5)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        memory: Float[Tensor, "batch keys width"],
        *,
        mask: MaskLike = None,
    ) -> Float[Tensor, "batch queries width"]:
        """The mean of the memory, weighted by its products with each query."""
        queries = x @ self.W_query if self.general else x
        with_head = (each[:, None] for each in (queries, memory, memory))
        return default_attend(*with_head, mask=mask, scale=1.0)[:, 0]


@final
class RelativeBias(nn.Module):
    """A learnt number for each head and distance up to `reach` (see `parts.positions.relative`)."""

    def __init__(self, heads: int, reach: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        return relative(self.table, queries, keys)


@final
class RungAttention(nn.Module):
    """A rung of the ladder as a trainable module, its parameters named as in the rung.

    mask: on top of the rung's own (`fixed`, `simplified` and `trainable` have none).
    attend: what does the work from `causal` on; by default the rung's own.
    Raises ValueError for heads or dropout on a rung that has none.
    """

    def __init__(
        self,
        rung: Rung,
        d_in: int,
        d_out: int | None = None,
        *,
        heads: int = 1,
        dropout: float = 0.0,
        mask: MaskLike = None,
        attend: Callable[..., Array] | None = None,
    ) -> None:
        super().__init__()
        self.rung, self.heads, self.mask = rung, heads, mask
        self.dropout, self.attend = dropout, attend
        shapes = rung.shapes(RungConfig(d_in, d_in if d_out is None else d_out, heads))
        for name, shape in shapes.items():
            weight = nn.Parameter(torch.empty(shape))
            nn.init.normal_(weight, std=shape[-2] ** -0.5)
            self.register_parameter(name, weight)

    def forward(
        self,
        x: Float[Tensor, "batch tokens d_in"],
        *,
        mask: Mask | None = None,
        cache: Cache | None = None,
        seed: Seed | None = None,
    ) -> Float[Tensor, "batch tokens d_out"]:
        """The rung's context. Raises ValueError with a cache: a rung sees its tokens whole."""
        if cache is not None:
            raise ValueError(f"the rung {self.rung.name!r} works without a cache")
        return self.rung.apply(
            x,
            dict(self.named_parameters(recurse=False)),
            heads=self.heads,
            mask=_together(self.mask, mask),
            dropout=self.dropout if self.training else 0.0,
            seed=seed,
            attend=self.attend,
        )


@final
class GeluMLP(nn.Module):
    """gelu(x c_fc) c_proj with tanh's GELU (Hendrycks and Gimpel 2016), as in GPT-2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = Projection(width, hidden)
        self.c_proj = Projection(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = tap("hidden", nn.functional.gelu(self.c_fc(x), approximate="tanh"))
        return tap("output", self.c_proj(hidden))


@final
class SquaredReluMLP(nn.Module):
    """relu(x up)^2 down  (So et al. 2021, Primer)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = tap("hidden", nn.functional.relu(self.up_proj(x)).square())
        return tap("output", self.down_proj(hidden))


@final
class SwigluMLP(nn.Module):
    """(silu(x gate) * x up) down  (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = tap("hidden", nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return tap("output", self.down_proj(hidden))


def _together(own: MaskLike, other: Mask | None) -> MaskLike:
    return own if other is None else both(own, other)
