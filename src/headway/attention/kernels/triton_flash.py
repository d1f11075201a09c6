"""FlashAttention-2 in Triton: the kernels, and the operators that PyTorch sees.

Dao 2023, algorithms 1 (forward) and 2 (backward). A program owns one block of queries or of keys
and walks along those blocks of the other side that the mask's band lets it meet.

    forward, own Q, along K and V:   S = scale Q K^T,   m' = max(m, rowmax S),   P = e^(S - m'),
                                     l' = e^(m - m') l + rowsum P,   O' = e^(m - m') O + P V
    at the end:                      O / l

    backward, D = rowsum(dO * O):    P = e^(S - m) / l,   dP = dO V^T,   dS = P * (dP - D)
    own K and V, along Q and dO:     dV = sum P^T dO,   dK = scale sum dS^T Q
    own Q and dO, along K and V:     dQ = scale sum dS K

Nothing of the size queries x keys is stored. Every number has one program that writes it, so there
are no atomics, and a call repeated gives the same bits. The exponentials are powers of 2, for which
there is an instruction: S and m are in units of log 2.

Two things differ from the paper, so that float32 is as right as the plain mechanism. m and l are
kept, not L = m + log l, which rounds all weights of a row the same way. And D is rowsum(P * dP)
there, from the same products as dS, of which then no rounding is left over where a row has one
large weight. In 16 bits both are less than what rounding P and dS costs.
"""

from __future__ import annotations

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
    """An array (batch, heads, tokens, dim) as a kernel gets it."""

    data: Any
    shape: Any
    strides: Any


class _Call(NamedTuple):
    """What every kernel gets."""

    q: Any
    k: Any
    v: Any  # not `values`: Triton's tuples have a field of that name
    least: Any  # least <= row - key <= most
    most: Any
    offset: Any  # query position = offset + row
    batch_offset: Any  # batch index = batch_offset + row of the batch
    scale: Any  # times log2(e), as is the softcap
    softcap: Any
    threshold: Any  # cells whose hash is not below it are kept
    kept: Any  # their share
    seed: Any  # its hash, one number; None without dropout


class _Rows(NamedTuple):
    """Arrays (batch, heads, queries) of float32: one number a row each."""

    peak: Any  # m
    share: Any  # 1 / l, and 0 for a dead row
    delta: Any  # D


def _jit(function: Any) -> Any:
    """triton.jit of the bare function: the tests wrap every function in a check of shapes."""
    return triton.jit(unwrap(function))


@_jit
def _program(array, OWN: constexpr):
    """The first token of this program's own block of an array, its batch row and its head."""
    blocks = tl.cdiv(array.shape[2], OWN)
    row = tl.program_id(0) // blocks
    return tl.program_id(0) % blocks * OWN, row // array.shape[1], row % array.shape[1]


@_jit
def _tile(array, batch, head, first, TOKENS: constexpr, DIM: constexpr):
    """The pointers to tokens of an array, from the first on, and which of them exist."""
    token = first + tl.arange(0, TOKENS)
    dim = tl.arange(0, DIM)
    there = (token < array.shape[2])[:, None] & (dim < array.shape[3])[None, :]
    # In 64 bits, for an array may have more elements than 32 bits can count.
    begin = batch.to(tl.int64) * array.strides[0] + head.to(tl.int64) * array.strides[1]
    down, right = token.to(tl.int64) * array.strides[2], dim.to(tl.int64) * array.strides[3]
    return array.data + begin + down[:, None] + right[None, :], there


@_jit
def _load(array, batch, head, first, TOKENS: constexpr, DIM: constexpr):
    """Tokens of an array, 0 where there are none."""
    pointers, there = _tile(array, batch, head, first, TOKENS, DIM)
    return tl.load(pointers, there, other=0.0)


@_jit
def _store(tile, array, batch, head, first, TOKENS: constexpr, DIM: constexpr):
    pointers, there = _tile(array, batch, head, first, TOKENS, DIM)
    tl.store(pointers, tile.to(array.data.dtype.element_ty), there)


@_jit
def _place(call, batch, head, row):
    """Where the number of a row is in an array (batch, heads, queries), and whether it exists."""
    begin = (batch.to(tl.int64) * call.q.shape[1] + head) * call.q.shape[2]
    return begin + row, row < call.q.shape[2]


@_jit
def _load_rows(call, rows, batch, head, row):
    """m, 1 / l and D of some rows, 0 where there are none."""
    place, there = _place(call, batch, head, row)
    peak = tl.load(rows.peak + place, there, other=0.0)
    share = tl.load(rows.share + place, there, other=0.0)
    return peak, share, tl.load(rows.delta + place, there, other=0.0)


@_jit
def _borders(first, length, least, most, OWN: constexpr, OTHER: constexpr):
    """Where the blocks of OTHER begin that a block of OWN meets, by least <= own - other <= most.

    Every cell of those between the second border and the third is allowed; the blocks before and
    after them are cut by the band or by the end of the array.
    """
    last = first + OWN - 1
    begin = tl.maximum(first - most, 0) // OTHER * OTHER
    end = tl.maximum(tl.minimum(last - least + 1, length), begin)
    whole = tl.minimum(tl.cdiv(tl.maximum(last - most, 0), OTHER) * OTHER, end)
    cut = tl.maximum(tl.minimum(first - least + 1, length), 0) // OTHER * OTHER
    return begin, whole, tl.maximum(cut, whole), end


@_jit
def _dot(left, right):
    """left @ right, summed in float32; of float32 without TensorFloat's short mantissas."""
    return tl.dot(left, right, input_precision="ieee")


@_jit
def _tanh(x):
    """Near 0 by Lambert's continued fraction, for there 1 - e^(-2x) cancels."""
    size = tl.abs(x)
    square = x * x
    near = size * (945 + square * (105 + square)) / (945 + square * (420 + 15 * square))
    shrunk = tl.exp(-2 * size)
    tanh = tl.where(size < 0.6, near, (1 - shrunk) / (1 + shrunk))
    return tl.where(x < 0, -tanh, tanh)


@_jit
def _scores(call, left, right, row, key, CUT: constexpr):
    """S of two tiles, -inf where not allowed, and the slope of the softcap.

    row, key: the cells' indices, which broadcast; the queries may be the left tile or the right.
    """
    scores = _dot(left, tl.trans(right)) * call.scale
    slope = 1.0
    if call.softcap is not None:
        tanh = _tanh(scores / call.softcap)
        scores = call.softcap * tanh
        slope = 1 - tanh * tanh
    if CUT:
        allowed = (call.least <= row - key) & (row - key <= call.most)
        # A row that does not exist needs no mask: all that is loaded of it is 0.
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
            # As long as nothing was allowed the largest is -inf, and -inf - -inf is NaN.
            anchor = tl.where(larger == -float("inf"), 0.0, larger)
            shrink = tl.exp2(largest - anchor)
            weights = tl.exp2(scores - anchor)
            total = total * shrink + tl.sum(weights, 1, keep_dims=True)
            if call.seed is not None:  # dropout is of the weights: the sum above is that of all
                kept = _kept(call, batch, head, row, key)
                weights = tl.where(kept, weights / call.kept, 0.0)
            summed = summed * shrink + _dot(weights.to(v.dtype), v)
            largest = larger
    dead = total == 0
    total = tl.where(dead, 1.0, total)
    _store(summed / total, context, batch, head, first, OWN, D_V)
    place, there = _place(call, batch, head, row)
    tl.store(rows.peak + place, tl.where(dead, 0.0, largest), there)
    tl.store(rows.share + place, tl.where(dead, 0.0, 1 / total), there)


@_jit
def _again(call, left, right, row, key, rows, batch, head, CUT: constexpr):
    """Of one tile: P, P as it met the values, dP, and the slope of the softcap.

    left and right are (queries, dO) and (keys, values), either way around.
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
    """Algorithm 2's dQ of one block of queries; without a place for it, D as rowsum(P * dP)."""
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
            p, _, dp, slope = _again(
                call, (q, do), (k, v), row, key, numbers, batch, head, part != 1
            )
            if queries_gradient is None:
                delta += tl.sum(p * dp, 1, keep_dims=True)
            else:
                ds = p * (dp - numbers[2]) * slope
                dq += _dot(ds.to(k.dtype), k)
    if queries_gradient is None:
        place, there = _place(call, batch, head, row)
        tl.store(rows.delta + place, delta, there)
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
    """Algorithm 2's dK and dV of one block of keys, from every head of queries that reads it."""
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
                p, dropped, dp, slope = _again(
                    call, (k, v), (q, do), row, key, numbers, batch, head, part != 1
                )
                ds = p * (dp - numbers[2]) * slope
                dv += _dot(dropped.to(do.dtype), do)
                dk += _dot(ds.to(q.dtype), q)
    dk *= call.scale / _LOG2_E
    _store(dk, keys_gradient, batch, kv_head, first, OWN, D_K)
    _store(dv, values_gradient, batch, kv_head, first, OWN, D_V)


# By the width of a head, the blocks (OWN, OTHER) of algorithm 1 and of algorithm 2 for numbers of
# 16 bits: as large as the registers and 99 KiB of shared memory hold.
_BLOCKS = {64: ((128, 64), (128, 32)), 128: ((128, 64), (64, 32)), 256: ((64, 32), (32, 32))}


def blocks(dim: int, size: int) -> list[tuple[int, int]]:
    """(OWN, OTHER) of algorithm 1 and of algorithm 2; `dim` numbers a head, of `size` bytes."""
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
    kv_heads, keys, d_v). numbers: seed, `dropout.hashed` or None for no dropout; band, that is
    least, most, offset and batch_offset, for which least <= row - key <= most, query position =
    offset + row and batch index = batch_offset + row of the batch; scale; softcap or None; rate,
    the share of weights that are dropped.
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
    """The gradients of `flash`'s queries, keys and values; `received` is that of the context."""
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
    """Room for what `flash` gives."""
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
    # Tiles are powers of 2, of which tensor cores want 16.
    dims = (max(16, triton.next_power_of_2(x.shape[-1])) for x in (call.q, call.v))
    programs = triton.cdiv(tokens, block[0]) * batch * heads
    with torch.cuda.device_of(own):
        kernel[programs,](call, *arrays, *dims, *block, num_warps=8, num_stages=2)


# What PyTorch cannot see by itself: the shapes, and that one operator is the other's derivative.


flash.register_fake(_results)


@flash_backward.register_fake
def _(
    received: Tensor, context: Tensor, peak: Tensor, share: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:3])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output, *inputs[:4])
    ctx.numbers = inputs[4:]


def _gradients(ctx: Any, received: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    found = flash_backward(received, *ctx.saved_tensors, *ctx.numbers)
    return (*found, None, *(None for _ in ctx.numbers))


flash.register_autograd(_gradients, setup_context=_remember)
