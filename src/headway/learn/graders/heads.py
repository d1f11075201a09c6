"""Exercise 8: several_heads(x, W_query, W_key, W_value)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.check.suspects.steps import Step, softmax
from headway.learn.answer import Answer
from headway.learn.graders.attention import Attention, hint, measured
from headway.learn.graders.attention_faults import MASK, SCALE, of_causal, of_roles, of_scale
from headway.learn.graders.calls import Watched
from headway.learn.graders.compare import Array, Fault, compare, fault
from headway.learn.graders.faults import (
    of_attention,
    of_mask,
    of_normalization,
    of_results,
    without,
)
from headway.learn.graders.projections import MATRICES, ONE_MATRIX, of_projections, qkv_view, views

# Lines that put the heads together: no projections, and no scores.
HEADS = (
    r"^(?!.*(sqrt|W_|0\.5|inf)).*(cat|stack|sum|mean|reshape|view|append|transpose|permute|\] = )"
)
HEADS += r"|^return .*(cat|stack|sum|mean)"


@dataclass(frozen=True)
class SeveralHeads(Attention):
    """The right answer, in steps."""

    causal: bool = True
    share: Step = lambda *matrices: matrices
    project: Step = lambda x, *matrices: tuple(x @ matrix for matrix in matrices)
    merge: Step = lambda contexts: np.concatenate([*contexts], axis=-1)
    is_chain: bool = False

    def __call__(  # type: ignore[override]  # the inputs of the exercise
        self, x: Array, W_query: Array, W_key: Array, W_value: Array
    ) -> Array:
        """Return the contexts of all heads, concatenated (tokens, heads * d_k)."""
        matrices = self.share(W_query, W_key, W_value)
        if self.is_chain:
            contexts = []
            for head in zip(*matrices, strict=True):
                qkv = self.project(x, *head)
                x = self.heads(*(array[None, None] for array in qkv))[0, 0]
                contexts.append(x)
            return np.asarray(self.finish(self.merge(np.array(contexts))))
        qkv = self.project(x, *matrices)
        contexts = self.heads(*(array[None] for array in qkv))[0]
        return np.asarray(self.finish(self.merge(contexts)))


def cases() -> list[dict[str, Array]]:
    """Return inputs, the smallest first; in some of them the matrices are square."""
    random = np.random.default_rng(8)
    found = []
    for heads, tokens, d_in, d_k in (
        (2, 2, 3, 2), (2, 3, 2, 2), (2, 4, 3, 2), (3, 5, 4, 3), (2, 6, 3, 4), (3, 3, 3, 3),
        (4, 5, 4, 4),
    ):  # fmt: skip
        digits = 1 if tokens < 5 else 5
        shapes = {"x": (tokens, d_in), **dict.fromkeys(MATRICES, (heads, d_in, d_k))}
        found.append({n: random.normal(size=shape).round(digits) for n, shape in shapes.items()})
    return found


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    return [
        *of_heads(),
        *without(of_projections(), "matrix-as-projection", "matrix-added"),
        *of_causal(),
        *of_mask(),
        *without(of_scale(), "scale-of-batch"),
        *without(of_normalization(), "sign", "min-max"),
        *without(of_roles(), "keys-reshaped", *ONE_MATRIX),
        *without(of_attention(), "scale-of-values", "not-summed"),
        *without(of_results("context"), "divided-by-rows", "reshaped"),
    ]


def overlapping(contexts: Array) -> Array:
    """Return what an answer computes that stores head h in the columns h to h + d_k."""
    heads, tokens, d_k = contexts.shape
    result = np.zeros((tokens, heads * d_k))
    for head, context in enumerate(contexts):
        result[:, head : head + d_k] = context
    return result


def of_heads() -> list[Fault]:
    """Return faults of the heads."""
    found: list[Fault] = []
    right = "Concatenate the contexts of the heads along the features: (tokens, heads * d_k)."

    def merged(name: str, message: str, *merges: Callable[[Array], Any]) -> None:
        found.extend(fault(name, f"{message} {right}", HEADS, merge=merge) for merge in merges)

    def tiled(context: Array, heads: int) -> Array:
        return np.asarray(np.tile(context, heads))

    merged("heads-added", "The heads are added.",
           lambda c: c.sum(0), lambda c: tiled(c.sum(0), len(c)))  # fmt: skip
    merged("heads-averaged", "The heads are averaged.",
           lambda c: c.mean(0), lambda c: tiled(c.mean(0), len(c)))  # fmt: skip
    merged("heads-multiplied", "The heads are multiplied.", lambda c: c.prod(0))
    merged("heads-maximum", "The largest number of all heads is used.", lambda c: c.max(0))
    merged("first-head-only", "Only the first head is returned.",
           lambda c: c[0], lambda c: np.concatenate([c[0], *np.zeros_like(c[1:])], -1))  # fmt: skip
    merged("last-head-only", "Only the last head is returned.",
           lambda c: c[-1],
           lambda c: np.concatenate([*np.zeros_like(c[1:]), c[-1]], -1))  # fmt: skip
    merged("last-head-missing", "The last head is missing: the loop is too short.",
           lambda c: np.concatenate([*c[:-1]], -1),
           lambda c: np.concatenate([*c[:-1], np.zeros_like(c[0])], -1))  # fmt: skip
    merged("first-head-missing", "The first head is missing: the loop starts at 1.",
           lambda c: np.concatenate([*c[1:]], -1),
           lambda c: np.concatenate([np.zeros_like(c[0]), *c[1:]], -1))  # fmt: skip
    merged("heads-along-tokens", "The heads are concatenated along the tokens (axis 0).",
           lambda c: np.concatenate([*c], 0))  # fmt: skip
    merged("not-concatenated", "The heads are stacked along an axis of their own.",
           lambda c: c, lambda c: c.swapaxes(0, 1), lambda c: np.stack([*c], -1))  # fmt: skip
    merged("heads-reversed", "The heads are in reversed order.",
           lambda c: np.concatenate([*c[::-1]], -1))  # fmt: skip
    merged("heads-reordered", "The heads are in another order.",
           lambda c: np.concatenate([*np.roll(c, 1, 0)], -1),
           lambda c: np.concatenate([*np.roll(c, -1, 0)], -1))  # fmt: skip
    merged("heads-interleaved",
           "The features of the heads alternate. Those of one head must be neighbors.",
           lambda c: c.transpose(1, 2, 0).reshape(c.shape[1], -1))  # fmt: skip
    merged("merged-by-view",
           "Tokens and heads are mixed by a reshape or view without a transpose. Swap the axes to "
           "(tokens, heads, d_k) first.",
           lambda c: c.reshape(c.shape[1], -1))  # fmt: skip
    merged("merged-by-view", "Tokens and features are mixed by a reshape or view.",
           lambda c: c.swapaxes(1, 2).reshape(c.shape[1], -1),
           lambda c: c.T.reshape(c.shape[1], -1))  # fmt: skip
    merged("same-head", "Every head is the first one.",
           lambda c: tiled(c[0], len(c)))  # fmt: skip
    merged("same-head", "Every head is the last one.",
           lambda c: tiled(c[-1], len(c)))  # fmt: skip
    merged("heads-cumulative", "Each head also contains the heads before it.",
           lambda c: np.concatenate([*c.cumsum(0)], -1))  # fmt: skip
    merged("heads-overlap", "The columns of the heads overlap: head h has the columns h * d_k to "
           "(h + 1) * d_k.", overlapping)  # fmt: skip
    merged("two-heads-only", "Only the first two heads are returned. Take the number of heads from "
           "W_query.shape[0].", lambda c: np.concatenate([*c[:2]], -1))  # fmt: skip
    merged("divided-by-heads", "The result is divided by the number of heads.",
           lambda c: np.concatenate([*c], -1) / len(c))  # fmt: skip

    each = "Head h uses W_query[h], W_key[h] and W_value[h]."
    look = "\n".join((r"W\w*\[(0|-1)\]", r"W\w*\[", r"W|\["))

    def shared(name: str, message: str, *shares: Callable[..., tuple[Array, ...]]) -> None:
        found.extend(fault(name, f"{message} {each}", look, share=share) for share in shares)

    def one(matrices: Array, head: int) -> Array:
        return np.broadcast_to(matrices[head], matrices.shape)

    for number, name in enumerate(MATRICES):
        for head, ordinal in ((0, "first"), (-1, "last")):
            shared("shared-matrix", f"All heads use {name} of the {ordinal} head.",
                   lambda *w, n=number, head=head: tuple(
                       one(m, head) if i == n else m for i, m in enumerate(w)))  # fmt: skip
            shared("shared-matrix", f"All heads use the {ordinal} head's matrices, except {name}.",
                   lambda *w, n=number, head=head: tuple(
                       m if i == n else one(m, head) for i, m in enumerate(w)))  # fmt: skip
        for reduce in (np.mean, np.sum):
            shared("averaged-matrices", f"The matrices {name} of all heads are averaged or added.",
                   lambda *w, n=number, reduce=reduce: tuple(
                       np.broadcast_to(reduce(m, 0), m.shape) if i == n else m
                       for i, m in enumerate(w)))  # fmt: skip
        shared("wrong-head", f"{name} of the next or the previous head is used.",
               lambda *w, n=number: tuple(
                   np.roll(m, 1, 0) if i == n else m for i, m in enumerate(w)),
               lambda *w, n=number: tuple(
                   np.roll(m, -1, 0) if i == n else m for i, m in enumerate(w)))  # fmt: skip

    def reshaped(x: Array, *matrices: Array) -> tuple[Array, ...]:
        heads, d_in, d_k = matrices[0].shape
        products = (x @ matrix.reshape(d_in, heads * d_k) for matrix in matrices)
        return tuple(p.reshape(len(x), heads, d_k).swapaxes(0, 1) for p in products)

    look = "reshape|view|flatten"
    found += [
        fault("heads-chained",
              "Each head reads the result of the head before it. All heads read x.", r"x =",
              is_chain=True),
        fault("weights-reshaped",
              "The matrices (heads, d_in, d_k) are reshaped to (d_in, heads * d_k), which mixes "
              "rows and columns. Transpose to (d_in, heads, d_k) first, or multiply head by head.",
              look, project=reshaped),
        fault("heads-by-view",
              "Queries, keys and values are reshaped to heads, which mixes tokens and features.",
              look, project=lambda x, *w: tuple(
                  (x @ m).swapaxes(0, 1).reshape(m.shape[0], len(x), -1) for m in w)),
        fault("scale-of-all-heads",
              "The scores are divided by the square root of the number of heads times d_k. Use "
              "sqrt(d_k), the width of one head.", SCALE,
              scale=lambda q, k, call: (q.shape[-1] * call.heads) ** -0.5),
        fault("scale-divided-by-heads",
              "d_k is divided by the number of heads once more. It is W_query.shape[-1], the width "
              "of one head already.", SCALE,
              scale=lambda q, k, call: (q.shape[-1] // call.heads) ** -0.5),
        fault("heads-share-scores",
              "The scores of all heads are added before the softmax. Each head has its own.",
              HEADS, scores=lambda q, k: (s := q @ k.swapaxes(-1, -2)).sum(1, keepdims=True)
              + 0 * s),
        fault("heads-share-scores",
              "The scores of all heads are averaged before the softmax. Each head has its own.",
              HEADS, scores=lambda q, k: (s := q @ k.swapaxes(-1, -2)).mean(1, keepdims=True)
              + 0 * s),
        fault("heads-share-weights",
              "The weights of all heads are averaged. Each head has its own.",
              HEADS, mix=lambda w, v: w.mean(1, keepdims=True) @ v),
        fault("softmax-all",
              "The softmax runs over all heads together. Use axis=-1.", r"softmax|sum\(",
              normalize=lambda s: np.exp(s) / np.exp(s).sum()),
    ]  # fmt: skip
    for hidden in (np.nan, 0.0, None):  # of cells that all heads hide
        found.append(
            fault(
                "softmax-over-heads",
                "The softmax runs over the heads (axis 0), so that the rows of the weights do not "
                "sum to 1. Use axis=-1.",
                r"softmax|sum\(",
                normalize=lambda s, hidden=hidden: np.nan_to_num(
                    softmax(s, 1), nan=1 / s.shape[1] if hidden is None else hidden
                ),
            )
        )
    for text, keep in (
        ("first head only", lambda h: h == 0),
        ("last head only", lambda h: h == h.max()),
        ("heads except the last", lambda h: h < h.max()),
        ("heads except the first", lambda h: h > 0),
    ):
        found.append(
            fault(
                "one-head-leaks",
                f"The causal mask is applied in the {text}: the others see later tokens. Apply it "
                "in each head.",
                MASK,
                structure=lambda call, keep=keep: (
                    call.structure() | ~keep(np.arange(call.heads))[:, None, None]
                ),
            )
        )
    exchanged = "The axes of heads and tokens are exchanged: the heads of one token attend to each "
    exchanged += "other. Compare tokens: the scores are (heads, tokens, tokens)."
    for causal in (True, False):
        found.append(
            fault(
                "heads-tokens-exchanged",
                exchanged,
                r"einsum|transpose|swapaxes|permute",
                project=lambda x, *w: tuple((x @ m).swapaxes(0, 1) for m in w),
                structure=lambda call, causal=causal: (
                    np.tri(call.shape[0], dtype=bool) if causal else np.ones(call.shape, bool)
                ),
                merge=lambda contexts: contexts.reshape(len(contexts), -1),
            )
        )
    return found


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched(answer) if answer.is_class else Watched.of(answer)
    compare(
        [*views(watched.answer)],
        cases(),
        [SeveralHeads()],
        faults(),
        what="context",
        measured=lambda view: measured(qkv_view(view, heads=2), causal=True),
        hint=lambda view: hint(qkv_view(view, heads=2), causal=True),
    )
    watched.check()
