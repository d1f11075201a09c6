"""`attend` computes attention with any kernel; `explain` returns which kernel runs, and why."""

import warnings
from dataclasses import dataclass
from typing import Unpack

from headway import tracing
from headway.attention.arrays import Array
from headway.attention.formula import Context, Keys, Queries, Values, attention, inputs
from headway.attention.grid import grid_of
from headway.attention.heads import group_of, of_heads
from headway.attention.kernels import tuning
from headway.attention.kernels.kernel import refusal
from headway.attention.kernels.table import KERNELS, kernel_named
from headway.attention.options import Options, spec_from
from headway.attention.shapes import aligned
from headway.attention.spec import Spec, Unsupported
from headway.tracing import tap


def attend(
    queries: Array,
    keys: Array,
    values: Array,
    *,
    kernel: str | None = None,
    **options: Unpack[Options],
) -> Array:
    """Attention on arrays of NumPy, PyTorch or JAX: softmax(queries keys^T / sqrt(d_k)) values.

    queries (..., heads, Tq, d_k), keys (..., kv_heads, Tk, d_k), values (..., kv_heads, Tk, d_v)
    -> context (..., heads, Tq, d_v). Query head h reads kv head h // (heads // kv_heads). Leading
    axes broadcast as in NumPy; arrays of two dimensions (tokens, dim) are one head.

    mask: a `Mask` or a boolean array (True = may attend), which broadcasts from the right.
    causal, window: short for `mask & causal & window(W)`. The last query is aligned with the last
        key, as with a cache; `is_causal` of PyTorch and JAX aligns the first ones (`offset=0`).
    bias: numbers added to the scaled scores; -inf masks a cell.
    scale: the factor of the scores, by default 1 / sqrt(d_k).
    softcap: a number c that limits the scores to c * tanh(scores / c), before the mask.
    normalizer, score: functions that replace the softmax and the dot product.
    sink_logits: one number per head (heads,), a score without a key and a value that takes part in
        the normalization, so that the weights of a query sum to less than 1 (gpt-oss).
    dropout: the probability that a weight is dropped, for training; needs a seed, which is one
        int or several, such as (seed, step).
    offset: the position of the first query, one int or one per batch row; by default Tk - Tq.
    batch_offset: the index of the first batch row, for a slice of a larger batch.
    kernel: a name in `headway.attention.kernels.table`; by default the fastest kernel that
        supports the call. While a trace or an edit requests a step that only the formula computes
        (scores ... dropped), the formula runs, even if a kernel is named.

    The context is 0 for a query that may attend to no key. Raises ValueError for invalid options
    and shapes that do not match, and `Unsupported` if the named kernel does not support the call.
    """
    spec = spec_from(options)
    is_one_head = 2 == queries.ndim == keys.ndim == values.ndim
    context = run(*aligned(queries, keys, values), spec, kernel)
    return context[0] if is_one_head else context


def attention_weights(queries: Array, keys: Array, **options: Unpack[Options]) -> Array:
    """The weights (..., heads, Tq, Tk) of attention; the options are those of `attend`.

    Each row sums to 1 (before dropout), to less than 1 with sink_logits, and to 0 if the query may
    attend to no key.
    """
    spec = spec_from(options)
    is_one_head = queries.ndim == keys.ndim == 2
    queries, keys, _ = aligned(queries, keys, keys)
    weights = attention(queries, keys, None, spec)
    return weights[0] if is_one_head else weights


@dataclass(frozen=True)
class Explanation:
    """The kernel that would run, the reason, and why other kernels cannot run."""

    chosen: str
    why: str
    refusals: dict[str, str]

    def __str__(self) -> str:
        refused = (f"{name} {reason}" for name, reason in self.refusals.items())
        return "\n".join([f"{self.chosen} runs: {self.why}", *refused])


def explain(queries: Array, keys: Array, values: Array, **options: Unpack[Options]) -> Explanation:
    """Explain which kernel `attend` would run for this call, and why other kernels cannot run."""
    spec = spec_from(options)
    arrays = aligned(queries, keys, values)
    refusals = {name: refusal(kernel, *arrays, spec) for name, kernel in KERNELS.items()}
    chosen = fastest(*arrays, spec)
    measured = "the fastest of those that support the call, as measured on this machine"
    return Explanation(
        chosen=chosen,
        why=measured
        if tuning.is_measured(chosen, *arrays, spec)
        else "chosen by a fixed rule; `headway bench --tune` measures the kernels",
        refusals={name: reason for name, reason in refusals.items() if reason is not None},
    )


def run(
    queries: Queries, keys: Keys, values: Values, spec: Spec, kernel: str | None = None
) -> Context:
    """Compute `attend` for aligned arrays with a heads axis, with the options as a Spec."""
    if kernel is None:
        name = fastest(queries, keys, values, spec)
    else:
        name = kernel
        reason = refusal(kernel_named(kernel), queries, keys, values, spec)
        if reason is not None:
            raise Unsupported(f"kernel {kernel!r} cannot run this call: it {reason}")
    if not tracing.listening():
        return _run(name, kernel is None, queries, keys, values, spec)
    part = tracing.wanted(tracing.INSIDE)
    if name == "plain" or part == tracing.EVERYTHING:
        return attention(queries, keys, values, spec)
    queries, keys, values = inputs(queries, keys, values, spec)
    if part is not None:
        with tracing.part_taken():
            grid = grid_of(queries, keys, spec).select(rows=part.rows, heads=part.heads)
            chosen = queries[..., part.heads, part.rows, :]
            attention(chosen, of_heads(keys, part.heads, group_of(queries, keys)), None, spec, grid)
    with tracing.silent():  # values inside a kernel are not steps of the attention
        context = _run(name, kernel is None, queries, keys, values, spec)
    return tap("context", context)


def fastest(queries: Queries, keys: Keys, values: Values, spec: Spec) -> str:
    """The name of the kernel that is expected to be the fastest of those that support the call."""
    for name in tuning.ranking(queries, keys, values, spec):
        kernel = KERNELS.get(name)  # None: a table of another version may name other kernels
        if kernel is not None and refusal(kernel, queries, keys, values, spec) is None:
            return name
    raise AssertionError("every ranking contains 'plain', which supports every call")


def _run(
    name: str, may_fall_back: bool, queries: Queries, keys: Keys, values: Values, spec: Spec
) -> Context:
    try:
        return KERNELS[name].run(queries, keys, values, spec)
    except Unsupported as error:
        if not may_fall_back:
            raise
        warnings.warn(f"attend runs 'plain' instead of {name!r}: {error}", stacklevel=3)
        return attention(queries, keys, values, spec)
