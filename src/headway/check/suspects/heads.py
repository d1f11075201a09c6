"""Faults of splitting, merging and assigning heads, and of the roles of the inputs."""

from __future__ import annotations

import numpy as np

from headway.check.suspects.steps import Array, Suspects, merge, repeat, split


def of_heads() -> Suspects:
    """Return faults of splitting, merging and assigning heads, and of the roles of the inputs."""
    fix = "x.view(batch, tokens, heads, dim).transpose(1, 2), and back with .transpose(1, 2)"
    found = Suspects(fix, r"view|reshape|transpose|permute|rearrange|repeat|expand")

    def by_view(packed: Array, heads: int) -> Array:
        return packed.reshape((packed.shape[0], heads, packed.shape[1], -1))

    def merged_by_view(context: Array) -> Array:
        return context.reshape((context.shape[0], context.shape[2], -1))

    mixed = "tokens and features are mixed: heads are {} by a view or reshape without a transpose"
    found.add(mixed.format("split"), split=by_view)
    found.add(mixed.format("merged") + " (without transposing back)", merge=merged_by_view)
    found.add(mixed.format("split and merged"), split=by_view, merge=merged_by_view)
    found.add(
        "heads and batch rows are mixed: heads are split before the batch axis by a view",
        split=lambda packed, heads: packed.reshape(
            (heads, packed.shape[0], packed.shape[1], -1)
        ).swapaxes(0, 1),
        merge=lambda context: context.swapaxes(0, 1).reshape(
            (context.shape[0], context.shape[2], -1)
        ),
    )
    for causal in (False, True):
        found.add(
            "tokens do not attend to each other, but the heads of one token do: the axes of heads "
            "and tokens are exchanged, a transpose is missing",
            split=lambda packed, heads: packed.reshape((*packed.shape[:2], heads, -1)),
            merge=lambda context: context.reshape((*context.shape[:2], -1)),
            structure=lambda call, causal=causal: (
                np.tri(call.heads, dtype=bool) if causal else np.ones((), bool)
            ),
            given=lambda call: None,
        )
        found.add(
            "tokens attend across the batch: the axes of batch and tokens are exchanged, as with "
            "batch_first=False",
            split=lambda packed, heads: split(packed.swapaxes(0, 1), heads),
            merge=lambda context: merge(context).swapaxes(0, 1),
            structure=lambda call, causal=causal: (
                np.tri(2, dtype=bool) if causal else np.ones((), bool)
            ),
            given=lambda call: None,
            fix="the axes are (batch, tokens, width): batch_first=True",
        )
    kv = "keys.repeat_interleave(heads // kv_heads, dim=1), not keys.repeat"

    def tile(x: Array, times: int) -> Array:
        return np.tile(x, (1, times, 1, 1))

    def first(x: Array, times: int) -> Array:
        return x[:, :1]

    tiled = "the kv heads are tiled: query head h reads kv head h % kv_heads"
    found.add(tiled, repeat_keys=tile, repeat_values=tile, fix=kv)
    found.add(f"{tiled} (keys only)", repeat_keys=tile, fix=kv)
    found.add(f"{tiled} (values only)", repeat_values=tile, fix=kv)
    which = "every query head reads the first head of the {}"
    found.add(which.format("keys and values"), repeat_keys=first, repeat_values=first, fix=kv)
    found.add(which.format("keys"), repeat_keys=first, fix=kv)
    found.add(which.format("values"), repeat_values=first, fix=kv)
    found.add(
        "the first head is used for all heads",
        mix=lambda w, v: np.broadcast_to((w @ v)[:, :1], (w @ v).shape),
    )
    found.add(
        "the heads are averaged, not concatenated",
        mix=lambda w, v: np.broadcast_to((w @ v).mean(1, keepdims=True), (w @ v).shape),
    )
    found.add(
        "the weights are averaged over the heads before the values",
        mix=lambda w, v: w.mean(1, keepdims=True) @ v,
    )

    def rolled(x: Array, times: int) -> Array:
        return np.roll(repeat(x, times), times, axis=1)

    found.add(
        "each group of query heads reads the previous kv head instead of its own",
        repeat_keys=rolled,
        repeat_values=rolled,
        fix=kv,
    )
    found.add("the heads leave in reversed order", mix=lambda w, v: (w @ v)[:, ::-1])
    found.add("the heads leave in another order", mix=lambda w, v: np.roll(w @ v, 1, 1))
    found.add("the heads leave in another order", mix=lambda w, v: np.roll(w @ v, -1, 1))
    found.add("the values are those of another batch row", mix=lambda w, v: w @ np.roll(v, -1, 0))
    found.add(
        "each token gets its own value only: the weights are summed, not multiplied with the "
        "values of other tokens",
        mix=lambda w, v: w.sum(-1, keepdims=True) * v,
        fix="context = weights @ values",
    )
    found.add(
        "the keys are reshaped instead of transposed before the product with the queries",
        exchange=lambda q, k, v: (
            q,
            k.reshape((*k.shape[:2], k.shape[3], k.shape[2])).swapaxes(-1, -2),
            v,
        ),
        fix="scores = queries @ keys.transpose(-1, -2), not reshape or view",
    )
    roles = "scores = queries @ keys.mT; context = weights @ values"
    for name, exchange in (
        ("queries and keys are exchanged: the scores are transposed", lambda q, k, v: (k, q, v)),
        ("keys and values are exchanged", lambda q, k, v: (q, v, k)),
        ("queries and values are exchanged", lambda q, k, v: (v, k, q)),
        ("the values are not used: the keys are mixed instead", lambda q, k, v: (q, k, k)),
        ("the values are not used: the queries are mixed instead", lambda q, k, v: (q, k, q)),
        ("the keys are not used: queries are compared with queries", lambda q, k, v: (q, q, v)),
        ("the keys are not used: queries are compared with values", lambda q, k, v: (q, v, v)),
        ("the queries are not used: keys are compared with keys", lambda q, k, v: (k, k, v)),
    ):
        found.add(name, exchange=exchange, fix=roles)
    found.add(
        "the weights are transposed before the values: each query mixes with the weights of a key",
        mix=lambda w, v: w.swapaxes(-1, -2) @ v,
        fix=roles,
    )
    return found
