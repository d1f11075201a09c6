"""FlashAttention-2 in Triton: the Triton kernels, and the PyTorch operators that launch them.

Dao 2023, algorithms 1 (forward) and 2 (backward). Each program has one block of queries or of keys
(OWN) and loops over the blocks of the other side (OTHER) that the band of the mask allows.

    forward, a block of Q, loop over K and V:
        S = scale Q K^T,   m' = max(m, rowmax S),   P = e^(S - m'),
        l' = e^(m - m') l + rowsum P,   O' = e^(m - m') O + P V,   at the end O / l
    backward, with D = rowsum(dO * O):
        P = e^(S - m) / l,   dP = dO V^T,   dS = P * (dP - D)
        a block of K and V, loop over Q and dO:   dV = sum P^T dO,   dK = scale sum dS^T Q
        a block of Q and dO, loop over K and V:   dQ = scale sum dS K

No array of the size queries x keys is stored. Each result is written by one program, so there are
no atomic operations, and repeated calls give identical bits. The exponentials are powers of 2,
which the hardware computes directly: S and m are in units of log 2.

Two details differ from the paper, so that float32 is as accurate as the formula. m and l are stored
instead of L = m + log l, which would round all weights of a row in the same direction. In float32
D is rowsum(P * dP), from the same products as dS, so that their rounding errors cancel in a row
with one large weight. In 16 bits, rounding P and dS has a larger effect than both details.
"""

from inspect import unwrap
from math import e, log2
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from headway.attention.dropout import GOLDEN, ROUNDS, threshold

_GOLDEN = constexpr(GOLDEN)
_ROUNDS = constexpr(ROUNDS)
_LOG2_E = constexpr(log2(e))


class _Array(NamedTuple):
    """An array (batch, heads, tokens, dim) as an argument of a kernel."""

    data: Any
    shape: Any
    strides: Any


class _Call(NamedTuple):
    """The arguments that all kernels get."""

    q: Any
    k: Any
    v: Any  # not `values`: Triton's tuples have a field of that name
    least: Any  # least <= row - key <= most
    most: Any
    offset: Any  # query position = offset + row
    batch_offset: Any  # batch index = batch_offset + row of the batch
    scale: Any  # scale and softcap are multiplied by log2(e)
    softcap: Any
    threshold: Any  # a cell is kept if its hash is not below the threshold
    kept: Any  # the fraction of cells that are kept
    seed: Any  # the hash of the seed, one number; None without dropout


class _Rows(NamedTuple):
    """Arrays (batch, heads, queries) of float32, with one number per row of scores."""

    peak: Any  # m
    share: Any  # 1 / l; 0 for a query that may attend to no key
    delta: Any  # D


def _jit(function: Any) -> Any:
    """Apply triton.jit to a function without the decorators with which tests check shapes."""
    return triton.jit(unwrap(function))


@_jit
def _program(array, OWN: constexpr):
    """The first token of this program's block of an array, its batch row and its head."""
    blocks = tl.cdiv(array.shape[2], OWN)
    row = tl.program_id(0) // blocks
    return tl.program_id(0) % blocks * OWN, row // array.shape[1], row % array.shape[1]


@_jit
def _tile(array, batch, head, first, TOKENS: constexpr, DIM: constexpr):
    """Pointers to a block of tokens of an array, and which of the elements exist."""
    token = first + tl.arange(0, TOKENS)
    dim = tl.arange(0, DIM)
    exists = (token < array.shape[2])[:, None] & (dim < array.shape[3])[None, :]
    # The offsets are computed in 64 bits, because an array may have more than 2^31 elements.
    begin = batch.to(tl.int64) * array.strides[0] + head.to(tl.int64) * array.strides[1]
    down, right = token.to(tl.int64) * array.strides[2], dim.to(tl.int64) * array.strides[3]
    return array.data + begin + down[:, None] + right[None, :], exists


@_jit
def _load(array, batch, head, first, TOKENS: constexpr, DIM: constexpr):
    """Load a block of tokens of an array; elements that do not exist are 0."""
    pointers, exists = _tile(array, batch, head, first, TOKENS, DIM)
    return tl.load(pointers, exists, other=0.0)


@_jit
def _store(tile, array, batch, head, first, TOKENS: constexpr, DIM: constexpr):
    pointers, exists = _tile(array, batch, head, first, TOKENS, DIM)
    tl.store(pointers, tile.to(array.data.dtype.element_ty), exists)


@_jit
def _index(call, batch, head, row):
    """The index of a row in an array (batch, heads, queries), and whether the row exists."""
    begin = (batch.to(tl.int64) * call.q.shape[1] + head) * call.q.shape[2]
    return begin + row, row < call.q.shape[2]


@_jit
def _load_rows(call, rows, batch, head, row):
    """Load m, 1 / l and D of a block of rows; 0 for rows that do not exist."""
    index, exists = _index(call, batch, head, row)
    peak = tl.load(rows.peak + index, exists, other=0.0)
    share = tl.load(rows.share + index, exists, other=0.0)
    return peak, share, tl.load(rows.delta + index, exists, other=0.0)


@_jit
def _borders(first, length, least, most, OWN: constexpr, OTHER: constexpr):
    """Four borders of the blocks of OTHER that the band least <= own - other <= most allows.

    In the blocks between the second and the third border all cells are allowed. The blocks before
    and after these contain some cells outside the band or after the end of the array.
    """
    last = first + OWN - 1
    begin = tl.maximum(first - most, 0) // OTHER * OTHER
    end = tl.maximum(tl.minimum(last - least + 1, length), begin)
    inner_begin = tl.minimum(tl.cdiv(tl.maximum(last - most, 0), OTHER) * OTHER, end)
    inner_end = tl.maximum(tl.minimum(first - least + 1, length), 0) // OTHER * OTHER
    return begin, inner_begin, tl.maximum(inner_end, inner_begin), end


@_jit
def _dot(left, right):
    """left @ right, summed in float32; products of float32 do not use TensorFloat-32."""
    return tl.dot(left, right, input_precision="ieee")


@_jit
def _tanh(x):
    """tanh(x); Lambert's continued fraction near 0, where 1 - e^(-2x) would lose precision."""
    size = tl.abs(x)
    square = x * x
    near = size * (945 + square * (105 + square)) / (945 + square * (420 + 15 * square))
    shrunk = tl.exp(-2 * size)
    tanh = tl.where(size < 0.6, near, (1 - shrunk) / (1 + shrunk))
    return tl.where(x < 0, -tanh, tanh)


@_jit
def _scores(call, left, right, row, key, CUT: constexpr):
    """Compute S for two tiles, -inf where not allowed, and the derivative of the softcap.

    row, key: the indices of the cells, which broadcast. The left tile may be queries or keys.
    """
    scores = _dot(left, tl.trans(right)) * call.scale
    slope = 1.0
    if call.softcap is not None:
        tanh = _tanh(scores / call.softcap)
        scores = call.softcap * tanh
        slope = 1 - tanh * tanh
    if CUT:
        allowed = (call.least <= row - key) & (row - key <= call.most)
        # A row that does not exist needs no mask, because it was loaded as 0.
        scores = tl.where(allowed & (key < call.k.shape[2]), scores, -float("inf"))
    return scores, slope


@_jit
def _mix(x):
    for i in tl.static_range(3):
        x = (x ^ ((x >> _ROUNDS[i][0]) & (2 ** (32 - _ROUNDS[i][0]) - 1))) * _ROUNDS[i][1]
    return x


@_jit
def _mixed(state, coordinate):
    return _mix(state ^ _mix(coordinate + _GOLDEN))


@_jit
def _kept(call, batch, head, row, key):
    """`keep` of attention/dropout.py, in Triton: the same cells."""
    state = _mixed(_mixed(tl.load(call.seed), call.batch_offset + batch), head)
    return _mixed(_mixed(state, call.offset + row), key) >= call.threshold


@_jit
def _forward(call, context, rows, D_K: constexpr, D_V: constexpr, OWN: constexpr, OTHER: constexpr):
    """Algorithm 1, for one block of queries."""
    first, batch, head = _program(call.q, OWN)
    kv_head = head // (call.q.shape[1] // call.k.shape[1])
    row = (first + tl.arange(0, OWN))[:, None]
    q = _load(call.q, batch, head, first, OWN, D_K)
    largest = tl.full((OWN, 1), -float("inf"), tl.float32)
    total = tl.zeros((OWN, 1), tl.float32)
    summed = tl.zeros((OWN, D_V), tl.float32)
    borders = _borders(first, call.k.shape[2], call.least, call.most, OWN, OTHER)
    for part in tl.static_range(3):
        for start in range(borders[part], borders[part + 1], OTHER):
            key = (start + tl.arange(0, OTHER))[None, :]
            k = _load(call.k, batch, kv_head, start, OTHER, D_K)
            v = _load(call.v, batch, kv_head, start, OTHER, D_V)
            scores, _ = _scores(call, q, k, row, key, part != 1)
            larger = tl.maximum(largest, tl.max(scores, 1, keep_dims=True))
            # Before the first allowed key the largest score is -inf, and -inf - -inf is NaN.
            anchor = tl.where(larger == -float("inf"), 0.0, larger)
            shrink = tl.exp2(largest - anchor)
            weights = tl.exp2(scores - anchor)
            total = total * shrink + tl.sum(weights, 1, keep_dims=True)
            if call.seed is not None:  # the sum above includes the weights that are dropped
                kept = _kept(call, batch, head, row, key)
                weights = tl.where(kept, weights / call.kept, 0.0)
            summed = summed * shrink + _dot(weights.to(v.dtype), v)
            largest = larger
    is_masked = total == 0  # the query may attend to no key
    total = tl.where(is_masked, 1.0, total)
    _store(summed / total, context, batch, head, first, OWN, D_V)
    index, exists = _index(call, batch, head, row)
    tl.store(rows.peak + index, tl.where(is_masked, 0.0, largest), exists)
    tl.store(rows.share + index, tl.where(is_masked, 0.0, 1 / total), exists)


@_jit
def _recomputed(call, left, right, row, key, rows, batch, head, CUT: constexpr):
    """Recompute P, P after dropout, dP, and the derivative of the softcap for one tile.

    left and right are (queries, dO) and (keys, values), in either order.
    """
    scores, slope = _scores(call, left[0], right[0], row, key, CUT)
    weights = tl.exp2(scores - rows[0]) * rows[1]
    gradient = _dot(left[1], tl.trans(right[1]))
    dropped = weights
    if call.seed is not None:
        factor = tl.where(_kept(call, batch, head, row, key), 1 / call.kept, 0.0)
        dropped = weights * factor
        gradient = gradient * factor
    return weights, dropped, gradient, slope


@_jit
def _backward_queries(
    call,
    received,
    rows,
    queries_gradient,
    D_K: constexpr,
    D_V: constexpr,
    OWN: constexpr,
    OTHER: constexpr,
):
    """Compute dQ of one block of queries (algorithm 2).

    If queries_gradient is None, compute D = rowsum(P * dP) instead and store it in rows.delta.
    """
    first, batch, head = _program(call.q, OWN)
    kv_head = head // (call.q.shape[1] // call.k.shape[1])
    row = (first + tl.arange(0, OWN))[:, None]
    q = _load(call.q, batch, head, first, OWN, D_K)
    do = _load(received, batch, head, first, OWN, D_V)
    numbers = _load_rows(call, rows, batch, head, row)
    delta = tl.zeros((OWN, 1), tl.float32)
    dq = tl.zeros((OWN, D_K), tl.float32)
    borders = _borders(first, call.k.shape[2], call.least, call.most, OWN, OTHER)
    for part in tl.static_range(3):
        for start in range(borders[part], borders[part + 1], OTHER):
            key = (start + tl.arange(0, OTHER))[None, :]
            k = _load(call.k, batch, kv_head, start, OTHER, D_K)
            v = _load(call.v, batch, kv_head, start, OTHER, D_V)
            p, _, dp, slope = _recomputed(
                call, (q, do), (k, v), row, key, numbers, batch, head, part != 1
            )
            if queries_gradient is None:
                delta += tl.sum(p * dp, 1, keep_dims=True)
            else:
                ds = p * (dp - numbers[2]) * slope
                dq += _dot(ds.to(k.dtype), k)
    if queries_gradient is None:
        index, exists = _index(call, batch, head, row)
        tl.store(rows.delta + index, delta, exists)
    else:
        dq *= call.scale / _LOG2_E
        _store(dq, queries_gradient, batch, head, first, OWN, D_K)


@_jit
def _backward_keys(
    call,
    received,
    rows,
    keys_gradient,
    values_gradient,
    D_K: constexpr,
    D_V: constexpr,
    OWN: constexpr,
    OTHER: constexpr,
):
    """Compute dK and dV of one block of keys (algorithm 2), from all query heads that read it."""
    first, batch, kv_head = _program(call.k, OWN)
    group = call.q.shape[1] // call.k.shape[1]
    key = (first + tl.arange(0, OWN))[:, None]
    k = _load(call.k, batch, kv_head, first, OWN, D_K)
    v = _load(call.v, batch, kv_head, first, OWN, D_V)
    dk = tl.zeros((OWN, D_K), tl.float32)
    dv = tl.zeros((OWN, D_V), tl.float32)
    borders = _borders(first, call.q.shape[2], -call.most, -call.least, OWN, OTHER)
    for member in range(group):
        head = kv_head * group + member
        for part in tl.static_range(3):
            for start in range(borders[part], borders[part + 1], OTHER):
                row = (start + tl.arange(0, OTHER))[None, :]
                q = _load(call.q, batch, head, start, OTHER, D_K)
                do = _load(received, batch, head, start, OTHER, D_V)
                numbers = _load_rows(call, rows, batch, head, row)
                p, dropped, dp, slope = _recomputed(
                    call, (k, v), (q, do), row, key, numbers, batch, head, part != 1
                )
                ds = p * (dp - numbers[2]) * slope
                dv += _dot(dropped.to(do.dtype), do)
                dk += _dot(ds.to(q.dtype), q)
    dk *= call.scale / _LOG2_E
    _store(dk, keys_gradient, batch, kv_head, first, OWN, D_K)
    _store(dv, values_gradient, batch, kv_head, first, OWN, D_V)


# For each width of a head, the block sizes (OWN, OTHER) of algorithm 1 and of algorithm 2 in 16
# bits: the largest that fit into the registers and 99 KiB of shared memory.
_BLOCKS = {64: ((128, 64), (128, 32)), 128: ((128, 64), (64, 32)), 256: ((64, 32), (32, 32))}


def blocks(dim: int, size: int) -> list[tuple[int, int]]:
    """The block sizes (OWN, OTHER) of algorithms 1 and 2, for `dim` features of `size` bytes."""
    widest = next(width for width in _BLOCKS if dim <= width)
    return [(own * 2 // size, other * 2 // size) for own, other in _BLOCKS[widest]]


_INPUTS = (
    "Tensor queries, Tensor keys, Tensor values, "
    "Tensor? seed, SymInt[] band, float scale, float? softcap, float rate"
)


@torch.library.custom_op(
    "headway::triton", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)"
)
def flash(
    queries: Tensor, keys: Tensor, values: Tensor, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The context (batch, heads, queries, d_v), and m and 1 / l (batch, heads, queries).

    queries (batch, heads, queries, d_k), keys (batch, kv_heads, keys, d_k), values (batch,
    kv_heads, keys, d_v). numbers are seed (of `dropout.hashed`, or None for no dropout), band,
    scale, softcap (or None) and rate, the fraction of weights that are dropped. band is [least,
    most, offset, batch_offset]: a cell is allowed if least <= row - key <= most, the position of a
    query is offset + row, and the batch index is batch_offset + row of the batch.
    """
    context, peak, share = _results(queries, keys, values)
    block, _ = blocks(max(queries.shape[-1], values.shape[-1]), queries.dtype.itemsize)
    call = _call(queries, keys, values, *numbers)
    _launch(_forward, queries, call, block, _array(context), _Rows(peak, share, None))
    return context, peak, share


@torch.library.custom_op(
    "headway::triton_backward",
    mutates_args=(),
    schema=f"(Tensor received, Tensor context, Tensor peak, Tensor share, {_INPUTS})"
    " -> (Tensor, Tensor, Tensor)",
)
def flash_backward(
    received: Tensor, context: Tensor, peak: Tensor, share: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the queries, keys and values; `received` is the gradient of the context."""
    queries, keys, values = inputs[:3]
    _, block = blocks(max(queries.shape[-1], values.shape[-1]), queries.dtype.itemsize)
    call, gradient = _call(*inputs), _array(received)
    if queries.dtype == torch.float32:
        rows = _Rows(peak, share, torch.empty_like(peak))
        _launch(_backward_queries, queries, call, block, gradient, rows, None)
    else:
        delta = (received.float() * context.float()).sum(-1)
        rows = _Rows(peak, share, delta.contiguous())
    dq, dk, dv = (x.new_empty(x.shape) for x in inputs[:3])
    _launch(_backward_queries, queries, call, block, gradient, rows, _array(dq))
    _launch(_backward_keys, keys, call, block, gradient, rows, _array(dk), _array(dv))
    return dq, dk, dv


def _results(queries: Tensor, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, ...]:
    """Allocate the results of `flash`."""
    rows = queries.shape[:-1]
    peak, share = (queries.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return queries.new_empty((*rows, values.shape[-1])), peak, share


def _array(array: Tensor) -> _Array:
    return _Array(array, tuple(array.shape), array.stride())


def _call(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    seed: Tensor | None,
    band: list[int],
    scale: float,
    softcap: float | None,
    rate: float,
) -> _Call:
    least, most, offset, batch_offset = band
    return _Call(
        q=_array(queries),
        k=_array(keys),
        v=_array(values),
        least=least,
        most=most,
        offset=offset,
        batch_offset=batch_offset,
        scale=scale * log2(e),
        softcap=None if softcap is None else softcap * log2(e),
        threshold=threshold(rate),
        kept=1 - rate,
        seed=seed,
    )


def _launch(kernel: Any, own: Tensor, call: _Call, block: tuple[int, int], *arrays: Any) -> None:
    """Run a kernel, one program for each block of `own`."""
    batch, heads, tokens, _ = own.shape
    # The sizes of tiles are powers of 2, and tensor cores need at least 16.
    dims = (max(16, triton.next_power_of_2(x.shape[-1])) for x in (call.q, call.v))
    programs = triton.cdiv(tokens, block[0]) * batch * heads
    with torch.cuda.device_of(own):
        kernel[programs,](call, *arrays, *dims, *block, num_warps=8, num_stages=2)


# PyTorch cannot derive the shapes of the results or the derivative from a custom operator, so both
# are registered here.


flash.register_fake(_results)


@flash_backward.register_fake
def _(
    received: Tensor, context: Tensor, peak: Tensor, share: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output, *inputs[:4])
    ctx.numbers = inputs[4:]


def _gradients(ctx: Any, received: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = flash_backward(received, *ctx.saved_tensors, *ctx.numbers)
    return (*gradients, None, *(None for _ in ctx.numbers))


flash.register_autograd(_gradients, setup_context=_save)
