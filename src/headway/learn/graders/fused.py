"""Exercise 9: all heads in one product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from headway.check.declaration import Declaration
from headway.check.suspects.steps import Array, Call, Step, Steps
from headway.learn.answer import Answer
from headway.learn.graders.attention_faults import (
    ROLES,
    SCALE,
    low,
    of_causal,
    of_roles,
    of_scale,
    of_softmax,
)
from headway.learn.graders.calls import Watched
from headway.learn.graders.compare import Fault, View, compare
from headway.learn.graders.modules import has_one_width, modules

QKV = Declaration(kind="qkv")


def project(x: Array, *matrices: Array, heads: int) -> tuple[Array, ...]:
    """Return queries, keys and values (tokens, d_out)."""
    return tuple(x @ matrix for matrix in matrices)


def output(context: Array, W_output: Array, x: Array) -> Array:
    """Mix the heads."""
    return np.asarray(context @ W_output)


@dataclass(frozen=True)
class Multihead(Steps):
    """The right answer, in steps."""

    project: Step = project
    factor: Step = lambda x, heads: None
    heads: Step = lambda heads: heads
    output: Step = output

    def __call__(  # type: ignore[override]  # the inputs of the exercise
        self, x: Array, W_query: Array, W_key: Array, W_value: Array, W_output: Array, heads: int
    ) -> Array:
        """Return the result (tokens, d_out)."""
        q, k, v = self.project(x, W_query, W_key, W_value, heads=heads)
        count, shape = self.heads(heads), (len(x), len(x))
        call = Call(QKV, shape, count, count, causal=True, scale=self.factor(x, heads))
        context = Steps.__call__(self, q[None], k[None], v[None], call)
        return np.asarray(self.output(context[0], W_output, x))


def cases(is_square: bool = False) -> list[dict[str, Any]]:
    """Return inputs, the smallest first; in the last ones all sizes are equal.

    is_square: only those with d_in = d_out.
    """
    random = np.random.default_rng(9)

    def case(tokens: int, d_in: int, heads: int, d_head: int) -> dict[str, Any]:
        width = heads * d_head
        shapes = dict.fromkeys(("W_query", "W_key", "W_value"), (d_in, width))
        shapes |= {"W_output": (width, width)}
        arrays = {
            name: random.normal(size=shape).round(1)
            for name, shape in {"x": (tokens, d_in), **shapes}.items()
        }
        return {**arrays, "heads": heads}

    square = [case(2, 4, 2, 2), case(3, 9, 3, 3)]
    if is_square:
        return [*square, case(4, 6, 2, 3)]
    return [case(3, 2, 2, 2), case(4, 5, 2, 3), case(5, 3, 3, 2), *square]


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    axes = {-2: "the queries", 1: "the heads", (-2, -1): "all queries and keys together"}
    axes[(1, 2, 3)] = "all cells of all heads together"
    return [
        *of_causal(),
        *of_heads(),
        *of_scale(),
        *of_softmax(axes),
        *of_output(),
        *of_roles(),
        *of_projections(),
    ]


def of_heads() -> list[Fault]:
    """Return faults of splitting and merging heads."""
    found = []
    look = r"reshape|view|split|transpose|permute|swapaxes|rearrange|chunk|flatten"

    def add(name: str, message: str, **steps: Any) -> None:
        found.append(Fault(name, message, look, steps))

    def by_view(packed: Array, heads: int) -> Array:
        return packed.reshape((1, heads, packed.shape[1], -1))

    def by_strides(packed: Array, heads: int) -> Array:
        return packed.reshape((1, packed.shape[1], -1, heads)).transpose(0, 3, 1, 2)

    def merged_by_view(context: Array) -> Array:
        return context.reshape((1, context.shape[2], -1))

    def merged_by_strides(context: Array) -> Array:
        return np.asarray(context.transpose(0, 2, 3, 1).reshape((1, context.shape[2], -1)))

    def merged_by_features(context: Array) -> Array:
        """Transpose all axes: (d, tokens, heads)."""
        return np.asarray(context[0].T.reshape((1, context.shape[2], -1)))

    def merged_within_heads(context: Array) -> Array:
        return np.asarray(context.swapaxes(2, 3).reshape((1, context.shape[2], -1)))

    back = "Split with reshape(tokens, heads, d_head) and swap the first two axes; merge in the "
    back += "opposite order."
    mixed = "Tokens and features are mixed: the heads are {} by a reshape or view without a "
    mixed += "transpose. " + back
    add("split-by-view", mixed.format("split"), split=by_view)
    merging = r"(context|weights|softmax|attn|out)\b.*(reshape|view)|^return.*(reshape|view)"
    merging += f"\n{look}"
    message = mixed.format("merged")
    found.append(Fault("merged-by-view", message, merging, {"merge": merged_by_view}))
    add(
        "split-and-merged-by-view",
        mixed.format("split and merged"),
        split=by_view,
        merge=merged_by_view,
    )
    strided = "The features of a head are not neighbors: head h takes the columns h, h + heads, "
    strided += "... Head h must take the columns from h * d_head to (h + 1) * d_head. " + back
    add("heads-interleaved", strided, split=by_strides)
    add("heads-interleaved", strided, split=by_strides, merge=merged_by_strides)
    order = "The features are merged in another order than they were split. " + back
    add("merge-order", order, merge=merged_by_strides)
    add("merge-order", order, merge=merged_by_features)
    add(
        "merge-axes",
        "The wrong axes are swapped before the heads are merged: tokens and features instead of "
        "heads and tokens. " + back,
        merge=merged_within_heads,
    )
    exchanged = "The axes of heads and tokens are exchanged: the heads of one token attend to each "
    exchanged += "other, and tokens do not. Swap the axes to (heads, tokens, d_head)."
    by_token: dict[str, Any] = {
        "split": lambda packed, heads: packed.reshape((1, packed.shape[1], heads, -1)),
        "merge": lambda context: context.reshape((1, context.shape[1], -1)),
    }
    for structure in (
        lambda call: np.ones((), bool),
        lambda call: np.tri(call.heads, dtype=bool),
        lambda call: np.tri(call.shape[0], dtype=bool),
    ):
        add("heads-tokens-exchanged", exchanged, **by_token, structure=structure)
    one = "The heads are not split: there is one head with all features. Split queries, keys and "
    one += "values into heads."
    add("one-head", one, heads=lambda heads: 1)
    add("one-head", one, heads=lambda heads: 1, scale=lambda q, k, call: q.shape[-1] ** -0.5)
    add("one-head", one, heads=lambda heads: 1, factor=lambda x, heads: None)
    first = "Every head computes the first head. Use the features of head h."
    add("same-head", first, mix=lambda w, v: np.broadcast_to((w @ v)[:, :1], (w @ v).shape))
    add(
        "same-head",
        "Every head computes the last head. Use the features of head h.",
        mix=lambda w, v: np.broadcast_to((w @ v)[:, -1:], (w @ v).shape),
    )
    for name, message, mix in (
        (
            "heads-averaged",
            "The heads are averaged. Concatenate them.",
            lambda w, v: (w @ v).mean(axis=1, keepdims=True) + 0 * v,
        ),
        (
            "heads-added",
            "The heads are added. Concatenate them.",
            lambda w, v: (w @ v).sum(axis=1, keepdims=True) + 0 * v,
        ),
        (
            "weights-shared",
            "The weights are averaged over the heads. Each head has its own.",
            lambda w, v: w.mean(axis=1, keepdims=True) @ v,
        ),
        (
            "weights-shared",
            "All heads use the weights of the first head. Each head has its own.",
            lambda w, v: w[:, :1] @ v,
        ),
        (
            "weights-shared",
            "The scores of all heads are added before the softmax. Each head has its own weights.",
            None,
        ),
        ("heads-reversed", "The heads leave in reversed order.", lambda w, v: (w @ v)[:, ::-1]),
        (
            "heads-reordered",
            "The heads leave in another order.",
            lambda w, v: np.roll(w @ v, 1, axis=1),
        ),
        (
            "last-head-missing",
            "The last head is missing: its features are 0.",
            lambda w, v: (w @ v) * (np.arange(w.shape[1]) < w.shape[1] - 1)[:, None, None],
        ),
        (
            "only-first-head",
            "Only the first head is computed; the others are 0.",
            lambda w, v: (w @ v) * (np.arange(w.shape[1]) < 1)[:, None, None],
        ),
    ):
        if mix is None:
            add(
                name,
                message,
                hide_structure=lambda scores, allowed: np.where(
                    allowed, scores.sum(axis=1, keepdims=True) + 0 * scores, -np.inf
                ),
            )
        else:
            add(name, message, mix=mix)
    add(
        "mask-of-first-head",
        "The mask is applied in the first head only. Apply it in all heads.",
        structure=lambda call: call.structure() | (np.arange(call.heads) > 0)[:, None, None],
    )
    return found


def of_output() -> list[Fault]:
    """Return faults of W_output and of what is returned."""
    look, found = r"W_o|out|return", []

    def add(name: str, message: str, **steps: Any) -> None:
        found.append(Fault(name, message, look, steps))

    message = "W_output is not used. Multiply the merged heads with it."
    found.append(Fault("no-output", message, "^return", {"output": lambda context, W, x: context}))
    add(
        "output-transposed",
        "W_output is transposed. Multiply the merged heads with W_output as it is.",
        output=lambda context, W, x: context @ W.T,
    )
    add(
        "output-twice",
        "W_output is applied twice. Apply it once, at the end.",
        output=lambda context, W, x: context @ W @ W,
    )
    add(
        "residual",
        "x is added to the result. Return the product with W_output alone.",
        output=lambda context, W, x: x + context @ W,
    )
    add(
        "residual",
        "The context is added to the result. Return the product with W_output alone.",
        output=lambda context, W, x: context + context @ W,
    )
    add(
        "output-per-head",
        "Each head is multiplied with the same rows of W_output. Merge the heads first: each head "
        "has rows of its own.",
        merge=lambda context: context,
        output=lambda context, W, x: context.sum(axis=0) @ W[: context.shape[-1]],
    )
    heads_apart = "The heads are not merged. Concatenate them to (tokens, d_out), then multiply "
    heads_apart += "with W_output."
    add(
        "not-merged",
        heads_apart,
        merge=lambda context: context,
        output=lambda context, W, x: context,
    )
    add(
        "not-merged",
        heads_apart,
        merge=lambda context: context.swapaxes(1, 2),
        output=lambda context, W, x: context,
    )
    add(
        "not-merged",
        heads_apart,
        merge=lambda context: context.reshape((1, -1, context.shape[-1])),
        output=lambda context, W, x: context,
    )
    add(
        "result-transposed",
        "The result is transposed: it must be (tokens, d_out).",
        output=lambda context, W, x: (context @ W).T,
    )
    return found


def of_projections() -> list[Fault]:
    """Return faults of the projections."""
    found = []
    fused = "The product with the fused matrix is cut in the wrong places. "
    fused += "It has the columns [queries | keys | values], each of them [head 0 | head 1 | ...]."

    def add(name: str, message: str, cut: Callable[[Array, int], tuple[Array, ...]]) -> None:
        def cut_product(x: Array, *matrices: Array, heads: int) -> tuple[Array, ...]:
            product = x @ np.concatenate(matrices, axis=1)
            return tuple(part.reshape((len(x), -1)) for part in cut(product, heads))

        look = r"reshape|view|split|chunk|concat|cat\(|hstack"
        found.append(Fault(name, message, look, {"project": cut_product}))

    def take(product: Array, shape: tuple[int, ...], axis: int) -> tuple[Array, ...]:
        parts = product.reshape(shape)
        return tuple(parts.take(index, axis=axis) for index in range(3))

    add("fused-cut", fused, lambda p, heads: take(p, (len(p), heads, 3, -1), 2))
    add("fused-cut", fused, lambda p, heads: take(p, (len(p), heads, -1, 3), 3))
    add("fused-cut", fused, lambda p, heads: take(p, (len(p), -1, 3), 2))
    add("fused-cut", fused, lambda p, heads: take(p, (3, -1), 0))
    add("fused-cut", fused, lambda p, heads: take(p, (len(p), heads, 3, -1), 2))
    found += [
        Fault(
            "weights-reshaped",
            "The matrices are reshaped to (heads, d_in, d_head), which mixes rows and columns. "
            "Reshape to (d_in, heads, d_head) and transpose, or split the product x @ W.",
            r"reshape|view",
            {
                "project": lambda x, *matrices, heads: tuple(
                    np.concatenate([*(x @ W.reshape((heads, x.shape[1], -1)))], axis=-1)
                    for W in matrices
                )
            },
        ),
        Fault(
            "weights-transposed-by-reshape",
            "The matrices are reshaped to (d_out, d_in). They are (d_in, d_out) already.",
            r"reshape|view",
            {
                "project": lambda x, *matrices, heads: tuple(
                    x @ W.reshape((W.shape[1], W.shape[0])).T for W in matrices
                )
            },
        ),
        Fault(
            "one-matrix",
            "Only one of the three matrices is transposed. Use x @ W for all of them.",
            r"\.T|transpose",
            {"project": lambda x, Wq, Wk, Wv, heads: (x @ Wq, x @ Wk, x @ Wv.T)},
        ),
        Fault(
            "matrices-transposed",
            "The matrices of queries, keys and values are transposed. They are (d_in, d_out): use "
            "x @ W.",
            r"\.T|transpose",
            {"project": lambda x, *matrices, heads: tuple(x @ W.T for W in matrices)},
        ),
        Fault(
            "no-projection",
            "x is used without W_value. Multiply it with W_value first.",
            ROLES,
            {"project": lambda x, Wq, Wk, Wv, heads: (x @ Wq, x @ Wk, x)},
        ),
        Fault(
            "no-projection",
            "x is used without the matrices. Multiply it with W_query, W_key and W_value first.",
            ROLES,
            {"project": lambda x, Wq, Wk, Wv, heads: (x, x, x)},
        ),
        Fault(
            "scale-of-d-in",
            "The scores are divided by the square root of the width of x (d_in). Use the number of "
            "features of one head.",
            SCALE,
            {"factor": lambda x, heads: x.shape[1] ** -0.5},
        ),
    ]
    return found


def views(answer: Answer) -> Iterator[View]:
    """Return the ways to call the answer that are accepted."""
    if answer.is_class:
        yield from modules(answer)
        return

    def call(inputs: Any, shape: tuple[int, ...], *, batch: bool, transposed: bool) -> Array:
        given = dict(inputs)
        if batch:
            given["x"] = given["x"][None]
        if transposed:
            given |= {name: given[name].T for name in given if name.startswith("W_")}
        expected = (1, *shape) if batch else shape
        result: Array = answer.call_named(given, expected)
        return np.asarray(result[0] if batch and result.shape[:1] == (1,) else result)

    def fused(inputs: Any, shape: tuple[int, ...], *, order: tuple[str, ...]) -> Array:
        matrix = np.concatenate([inputs[name] for name in order], axis=1)
        return answer.call(inputs["x"], matrix, inputs["W_output"], inputs["heads"], shape=shape)

    if len(answer.names()) == 4:
        for order in permutations(("W_query", "W_key", "W_value")):
            yield partial(fused, order=order)
        return
    for batch in (False, True):
        for transposed in (False, True):
            yield partial(call, batch=batch, transposed=transposed)


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    is_square = answer.is_class and has_one_width(answer)
    few, more = cases(is_square)[:3], cases(is_square)[3:]
    formulas = [Multihead(), Multihead(hide_structure=low)]
    watched = Watched(answer) if answer.is_class else Watched.of(answer)
    compare([*views(watched.answer)], few, formulas, faults(), more=more)
    watched.check()
