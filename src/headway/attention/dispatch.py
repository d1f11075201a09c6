"""`attend`: one call for every way to run the mechanism, and `explain`: which way, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Unpack

from headway import tracing
from headway.attention.dropout import Seed
from headway.attention.formula import (
    Bias,
    Context,
    Keys,
    MaskLike,
    Queries,
    Values,
    Weights,
    attention_weights,
    inputs,
)
from headway.attention.kernels import tuning
from headway.attention.kernels.einsum import EINSUM
from headway.attention.kernels.flex import FLEX
from headway.attention.kernels.jax import JAX
from headway.attention.kernels.mha import MHA
from headway.attention.kernels.plain import PLAIN
from headway.attention.kernels.sdpa import CUDNN, EFFICIENT, FLASH, MATH, SDPA
from headway.attention.kernels.stacked import STACKED
from headway.attention.kernels.tiled import TILED
from headway.attention.kernels.triton import TRITON
from headway.attention.masks import Offset, cells
from headway.attention.normalizers import Normalizer, softmax
from headway.attention.spec import Call, Kernel, Options, Unsupported
from headway.tracing import tap

KERNELS: MappingProxyType[str, Kernel] = MappingProxyType(
    {
        "plain": PLAIN,
        "stacked": STACKED,
        "einsum": EINSUM,
        "tiled": TILED,
        "sdpa": SDPA,
        "sdpa-math": MATH,
        "sdpa-flash": FLASH,
        "sdpa-efficient": EFFICIENT,
        "sdpa-cudnn": CUDNN,
        "mha": MHA,
        "flex": FLEX,
        "jax": JAX,
        "triton": TRITON,
    }
)


def attend(
    queries: Queries,
    keys: Keys,
    values: Values,
    *,
    mask: MaskLike = None,
    bias: Bias = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    normalizer: Normalizer = softmax,
    dropout: float = 0.0,
    seed: Seed | None = None,
    offset: Offset = None,
    kernel: str | None = None,
) -> Context:
    """Attention on arrays of NumPy, PyTorch or JAX: softmax(queries keys^T / sqrt(d_k)) values.

    queries (..., heads, Tq, d_k), keys (..., kv_heads, Tk, d_k), values (..., kv_heads, Tk, d_v)
    -> context (..., heads, Tq, d_v). Query head h reads kv head h // (heads // kv_heads).

    mask: a `Mask` or a boolean array (True = may attend); causal, window: sugar for
        `mask & causal & window(W)`.
    bias: numbers added to the scaled scores. scale: by default 1 / sqrt(d_k).
    softcap: c * tanh(scores / c), before the mask.
    dropout: of the weights; needs a seed (an int, or several such as (seed, step)).
    offset: the position of the first query, an int or one a batch row; by default Tk - Tq.
    kernel: its name (see `KERNELS`); None takes the best one that accepts the call.

    A query with nothing to attend to gets 0. Raises ValueError for shapes that do not fit, for an
    unknown kernel, and `Unsupported` when the named kernel cannot run the call.
    """
    call = Call.of(
        queries,
        keys,
        values,
        mask=mask,
        bias=bias,
        causal=causal,
        window=window,
        scale=scale,
        softcap=softcap,
        normalizer=normalizer,
        dropout=dropout,
        seed=seed,
        offset=offset,
    )
    chosen = _chosen(call, kernel)
    if not tracing.listening():
        return _run(chosen, call, kernel)
    rows = tracing.wanted(tracing.INSIDE)
    if chosen is PLAIN or rows == tracing.WHOLE:
        return PLAIN.run(call)
    queries, keys, values = inputs(queries, keys, values, **call.options())
    call = replace(call, queries=queries, keys=keys, values=values)
    if rows is not None:
        with tracing.rows_taken():
            where = cells(queries, keys, call.offset).rows_only(rows)
            attention_weights(queries[..., rows, :], keys, **call.options(), where=where)
    with tracing.silent():  # parts of a kernel are no steps
        context = _run(chosen, call, kernel)
    return tap("context", context)


def weights(queries: Queries, keys: Keys, **options: Unpack[Options]) -> Weights:
    """The weights (..., heads, Tq, Tk) of `attend`, which explains the options.

    Each row sums to 1 (before dropout), or is 0 where a query has nothing to attend to.
    """
    call = Call.of(queries, keys, keys, **options)
    return attention_weights(queries, keys, **call.options())


@dataclass(frozen=True)
class Explanation:
    """Which kernel would run, why that one, and why others could not."""

    chosen: str
    why: str
    refusals: dict[str, str]

    def __str__(self) -> str:
        refused = (f"{name} {reason}" for name, reason in self.refusals.items())
        return "\n".join([f"{self.chosen} runs: {self.why}", *refused])


def explain(
    queries: Queries, keys: Keys, values: Values, **options: Unpack[Options]
) -> Explanation:
    """Which kernel `attend` would take for this call, and why each one that refuses does so."""
    call = Call.of(queries, keys, values, **options)
    refusals = {name: kernel.refuse(call) for name, kernel in KERNELS.items()}
    chosen = _chosen(call, None)
    name = next(name for name, kernel in KERNELS.items() if kernel is chosen)
    here = "the fastest of those that take the call, as measured on this machine"
    return Explanation(
        chosen=name,
        why=here if tuning.knows(call, name) else "by rule; `headway bench --tune` measures",
        refusals={name: reason for name, reason in refusals.items() if reason is not None},
    )


def named(name: str) -> Kernel:
    """The kernel of this name. Raises ValueError, which tells the nearest, when there is none."""
    if name not in KERNELS:
        near = get_close_matches(name, KERNELS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no kernel is called {name!r}; did you mean {near!r}?")
    return KERNELS[name]


def _run(chosen: Kernel, call: Call, name: str | None) -> Context:
    """The kernel's context; `plain`'s where one that nobody named finds out that it cannot."""
    try:
        return chosen.run(call)
    except Unsupported:
        if name is not None:
            raise
        return PLAIN.run(call)


def _chosen(call: Call, name: str | None) -> Kernel:
    if name is None:
        for best in tuning.ranking(call):
            kernel = KERNELS.get(best)  # a table may be of another version
            if kernel is not None and kernel.refuse(call) is None:
                return kernel
        return PLAIN
    kernel = named(name)
    reason = kernel.refuse(call)
    if reason is not None:
        raise Unsupported(f"the kernel {name!r} cannot run this call: it {reason}")
    return kernel
