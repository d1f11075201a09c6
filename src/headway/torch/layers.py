"""The layers of the PyTorch engine: attention and the MLP as modules, and the cache.

The attention formula is in `headway.attention`; these modules hold the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.attention import dispatch
from headway.attention.formula import Attend, attention
from headway.attention.heads import merge, split
from headway.attention.masks import causal
from headway.attention.options import combine
from headway.attention.positions import Rotary, relative, rotate
from headway.attention.scores import tanh_sum
from headway.attention.spec import DEFAULT, Spec
from headway.ladder.rung import Rung, RungConfig
from headway.tracing import tap

CAUSAL = Spec(mask=causal)
Inputs = Float[Tensor, "batch tokens d_in"]
Outputs = Float[Tensor, "batch tokens d_out"]
Rotation = tuple[Float[Tensor, "*heads tokens half"], Float[Tensor, "*heads tokens half"]]


@final
class Cache:
    """The keys and values of all tokens so far, for one layer.

    capacity: the maximum number of tokens. The first `extend` allocates the memory for all of them;
    later calls copy only the new keys and values. starts: for rows that are padded on the left, the
    column where the text of each row begins; by default 0.
    """

    def __init__(
        self, capacity: int | torch.SymInt, starts: Int[Tensor, " batch"] | None = None
    ) -> None:
        self.capacity, self.starts = capacity, starts
        self.length: int | Tensor = 0
        self.arrays: tuple[Tensor, ...] = ()  # keys and values, with room for all tokens

    def extend(
        self,
        keys: Float[Tensor, "batch heads tokens d_k"],
        values: Float[Tensor, "batch heads tokens d_v"],
    ) -> tuple[Tensor, ...]:
        """Add tokens and return all keys and values. Raises ValueError beyond the capacity."""
        if isinstance(self.length, Tensor):
            column = self.length.reshape(1)
            for array, new in zip(self.arrays, (keys, values), strict=True):
                array.index_copy_(-2, column, new)
            return self.arrays
        end = self.length + keys.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds at most {self.capacity} tokens (got {end})")
        if not self.arrays:  # zeros, because a masked value must be finite
            self.arrays = tuple(
                x.new_zeros((*x.shape[:-2], self.capacity, x.shape[-1])) for x in (keys, values)
            )
        for array, new in zip(self.arrays, (keys, values), strict=True):
            array[..., self.length : end, :] = new
        self.length = end
        return self.held

    @property
    def held(self) -> tuple[Tensor, ...]:
        """All keys and values so far. Raises ValueError if the cache is empty."""
        if not self.arrays:
            raise ValueError("the cache is empty")
        return tuple(array[..., : self.length, :] for array in self.arrays)

    @classmethod
    def fixed(
        cls,
        arrays: tuple[Tensor, ...],
        length: Int[Tensor, ""],
        starts: Int[Tensor, " batch"] | None = None,
    ) -> Cache:
        """Return a cache with these arrays, whose results have the same shape in every call.

        length: a tensor that is set before each call of `extend`, which adds one token in this
        column and returns the keys and values of all columns; those after it must be masked.
        """
        cache = cls(arrays[0].shape[-2], starts)
        cache.length, cache.arrays = length, arrays
        return cache

    def __getitem__(self, rows: Int[Tensor, " rows"]) -> Cache:
        """Return a copy with these rows of the batch, in this order; rows may be repeated."""
        chosen = Cache(self.capacity, None if self.starts is None else self.starts[rows])
        if self.length:
            keys, values = self.held
            chosen.extend(keys[rows], values[rows])
        return chosen


@final
class MultiHeadAttention(nn.Module):
    """Multi-head attention: project -> split -> (rotary, cache) -> attend -> merge -> output.

    d_in, d_out: features of the input and of the output. kv_heads: the number of heads of keys and
    values, by default `heads` (fewer: grouped-query attention). head_dim: features of one head, by
    default d_out // heads. linear_bias: whether q, k, v and output have biases. output_bias:
    whether output has one, by default as linear_bias.
    rotary: rotary positions, such as `Rotary()`, or None.
    qk_norm: the eps of an RMSNorm of each head's queries and keys, or None.
    position_bias: a function from positions of queries and keys to a bias (heads, Tq, Tk) that is
        added to the scores, such as ALiBi or a learned `RelativeBias`; or None.
    spec: the options of attention; causal by default. Dropout is applied only while training.
    attend: the function that computes attention; to choose a kernel, pass for example
        `functools.partial(dispatch.run, kernel="plain")`.

    Raises ValueError if kv_heads does not divide heads or, without head_dim, if heads does not
    divide d_out.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int | None = None,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        linear_bias: bool = False,
        output_bias: bool | None = None,
        rotary: Rotary | None = None,
        qk_norm: float | None = None,
        position_bias: Callable[[Tensor, Tensor], Tensor] | None = None,
        spec: Spec = CAUSAL,
        attend: Attend = dispatch.run,
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        if head_dim is None:
            head_dim = RungConfig(d_in, d_out, heads).d_head
        if self.kv_heads < 1 or heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads (got {self.kv_heads} and {heads})")
        self.q = nn.Linear(d_in, heads * head_dim, linear_bias)
        self.k = nn.Linear(d_in, self.kv_heads * head_dim, linear_bias)
        self.v = nn.Linear(d_in, self.kv_heads * head_dim, linear_bias)
        output_bias = linear_bias if output_bias is None else output_bias
        self.output = nn.Linear(heads * head_dim, d_out, output_bias)
        self.q_norm = None if qk_norm is None else nn.RMSNorm(head_dim, eps=qk_norm)
        self.k_norm = None if qk_norm is None else nn.RMSNorm(head_dim, eps=qk_norm)
        self.rotary, self.position_bias = rotary, position_bias
        self.spec, self.attend = spec, attend

    def forward(
        self,
        x: Inputs,
        spec: Spec = DEFAULT,
        *,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
    ) -> Outputs:
        """Return the output of attention for each token.

        spec: the options of this call: a mask that is combined with the module's mask, the seed of
        dropout, the batch offset. cache: the keys and values of the preceding tokens; those of x
        are added to it. rotation: of the rotary positions of x, which are computed by default.
        Raises ValueError for dropout without a seed, and when the cache is full.
        """
        queries = split(self.q(x), self.heads)
        keys, values = split(self.k(x), self.kv_heads), split(self.v(x), self.kv_heads)
        group = self.heads // self.kv_heads
        if self.q_norm is not None and self.k_norm is not None:
            queries = self.q_norm(tap("unnormalized_queries", queries))
            keys = self.k_norm(tap("unnormalized_keys", keys, group))
        first = 0 if cache is None else cache.length
        end = first + x.shape[-2]
        positions = torch.arange(x.shape[-2], device=x.device) + first
        if self.rotary is not None:
            if rotation is None:
                starts = None if cache is None else cache.starts
                dim = queries.shape[-1]
                rotation = rotation_of(self.rotary, dim, positions, starts, end, like=queries)
            queries = rotate(tap("unrotated_queries", queries), *rotation)
            keys = rotate(tap("unrotated_keys", keys, group), *rotation)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        spec = combine(self.spec, spec, training=self.training)
        if self.position_bias is not None:
            key_positions = torch.arange(keys.shape[-2], device=x.device)
            spec = spec._replace(bias=self.position_bias(positions, key_positions).to(x.dtype))
        context = self.attend(queries, keys, values, spec)
        return tap("output", self.output(merge(context)))


def rotation_of(
    rotary: Rotary,
    dim: int,
    positions: Int[Tensor, " tokens"],
    starts: Int[Tensor, " batch"] | None,
    length: int | Int[Tensor, ""],
    like: Float[Tensor, "..."],
) -> Rotation:
    """Return the cosines and sines that rotate dim features, for the positions of these columns.

    starts: as in `Cache`. Only the scaling `dynamic` needs the positions in the text instead of the
    columns: its angles change between calls, so that a rotation depends on more than the difference
    of two columns. length: of the texts so far. like: a tensor with the dtype of the result.
    """
    if starts is not None:
        positions = (positions - starts[:, None])[:, None]
    cos, sin = rotary.rotation(positions, dim, length, like)
    return (_stored(cos), _stored(sin)) if torch.compiler.is_compiling() else (cos, sin)


@torch.library.custom_op("headway::stored", mutates_args=(), schema="(Tensor x) -> Tensor")
def _stored(x: Tensor) -> Tensor:
    """Return a copy.

    A compiled function keeps the results of operators that it does not know; others it may compute
    again wherever they are used, which takes as long as all other work on rotary positions.
    """
    return x.clone()


_stored.register_fake(torch.empty_like)


@final
class CrossAttention(nn.Module):
    """Multi-head attention with queries from one sequence and keys and values from another.

    Vaswani et al. 2017, section 3.2.3. d_in: features of both sequences and of the output.
    """

    def __init__(self, d_in: int, *, heads: int, attend: Attend = dispatch.run) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.q, self.k = nn.Linear(d_in, d_in), nn.Linear(d_in, d_in)
        self.v, self.output = nn.Linear(d_in, d_in), nn.Linear(d_in, d_in)

    def forward(
        self,
        x: Float[Tensor, "batch queries d_in"],
        memory: Float[Tensor, "batch keys d_in"],
        spec: Spec = DEFAULT,
        *,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch queries d_in"]:
        """Return the output of attention to the memory for each token of x.

        spec: the options, such as a mask for the padding of the memory. cache: stores the memory's
        keys and values at the first call, because the memory does not change between calls.
        """
        queries = split(self.q(x), self.heads)
        if cache is not None and cache.length:
            keys, values = cache.held
        else:
            keys, values = split(self.k(memory), self.heads), split(self.v(memory), self.heads)
            if cache is not None:
                keys, values = cache.extend(keys, values)
        context = self.attend(queries, keys, values, spec)
        return tap("output", self.output(merge(context)))


@final
class AdditiveAttention(nn.Module):
    """score(s, h) = v . tanh(s W_query + h W_key)  (Bahdanau et al. 2015, appendix A.1.2).

    Call `keys` once to project the memory; then call the module for each new query.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W_query = nn.Parameter(torch.empty(width, width))
        self.W_key = nn.Parameter(torch.empty(width, width))
        self.v = nn.Parameter(torch.empty(width))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=width**-0.5)

    def keys(self, memory: Float[Tensor, "batch keys width"]) -> Tensor:
        """Return the projected memory."""
        return memory @ self.W_key

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        keys: Float[Tensor, "batch keys width"],
        memory: Float[Tensor, "batch keys width"],
        spec: Spec = DEFAULT,
    ) -> Float[Tensor, "batch queries width"]:
        """Return, for each query, the mean of the memory weighted by attention to its keys."""
        queries, keys, values = (x @ self.W_query)[:, None], keys[:, None], memory[:, None]
        spec = spec._replace(scale=1.0, score=partial(tanh_sum, v=self.v))
        return attention(queries, keys, values, spec)[:, 0]


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
        spec: Spec = DEFAULT,
    ) -> Float[Tensor, "batch queries width"]:
        """Return, for each query, the mean of the memory weighted by dot-product attention."""
        queries, memory = (x @ self.W_query if self.general else x)[:, None], memory[:, None]
        return dispatch.run(queries, memory, memory, spec._replace(scale=1.0))[:, 0]


@final
class RelativeBias(nn.Module):
    """A learned bias for each head and each distance up to `reach`; see `positions.relative`."""

    def __init__(self, heads: int, reach: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        return relative(self.table, queries, keys)


@final
class RungAttention(nn.Module):
    """A rung of the ladder as a trainable module; its parameters have the names of the rung.

    spec: the options, such as a mask that is combined with the mask of the rung (`fixed`,
    `simplified` and `trainable` have none). Dropout is applied only while training.
    attend: computes attention in the rungs from `causal` on; by default the function of the rung.
    """

    def __init__(
        self,
        rung: Rung,
        d_in: int,
        d_out: int | None = None,
        *,
        heads: int = 1,
        spec: Spec = DEFAULT,
        attend: Attend | None = None,
    ) -> None:
        super().__init__()
        self.rung, self.heads, self.spec, self.attend = rung, heads, spec, attend
        shapes = rung.shapes(RungConfig(d_in, d_in if d_out is None else d_out, heads))
        for name, shape in shapes.items():
            weight = nn.Parameter(torch.empty(shape))
            nn.init.normal_(weight, std=shape[-2] ** -0.5)
            self.register_parameter(name, weight)

    def forward(self, x: Inputs, spec: Spec = DEFAULT, *, cache: Cache | None = None) -> Outputs:
        """Return the context of the rung; spec: options of this call, as in `MultiHeadAttention`.

        Raises ValueError for a cache, and for heads or dropout that the rung does not support.
        """
        if cache is not None:
            raise ValueError(f"the rung {self.rung.name!r} does not support a cache")
        return self.rung(
            x,
            dict(self.named_parameters(recurse=False)),
            combine(self.spec, spec, training=self.training),
            heads=self.heads,
            attend=self.attend,
        )


@final
class MLP(nn.Module):
    """The MLP of a layer: activation(x up) down; with a gate (activation(x gate) * x up) down.

    activation: a key of ACTIVATIONS. is_gated: whether it has a gate (Shazeer 2020).
    """

    def __init__(
        self, width: int, inside: int, activation: str, *, is_gated: bool = False, linear_bias: bool
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate = nn.Linear(width, inside, linear_bias) if is_gated else None
        self.up = nn.Linear(width, inside, linear_bias)
        self.down = nn.Linear(inside, width, linear_bias)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return the update for each token."""
        if self.gate is None:
            hidden = self.activation(self.up(x))
        else:
            hidden = self.activation(self.gate(x)) * self.up(x)
        return tap("output", self.down(tap("hidden", hidden)))


# The keys are those of `headway.models.gpt.ACTIVATIONS`. gelu is the approximation with tanh
# (Hendrycks and Gimpel 2016).
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": partial(nn.functional.gelu, approximate="tanh"),
        "gelu-exact": nn.functional.gelu,
        "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "relu": nn.functional.relu,
        "relu2": lambda x: nn.functional.relu(x).square(),
        "silu": nn.functional.silu,
        "tanh": torch.tanh,
    }
)
