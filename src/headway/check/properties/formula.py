"""softmax(Q K^T / sqrt(d_k)) V (Vaswani et al. 2017, equation 1), tested by what follows from it.

Each function is a check; what it promises stands in the table at the end. rotary: Su et al. 2021.
"""

from __future__ import annotations

import numpy as np

from headway.check.findings import Outcome, verdict
from headway.check.properties.check import (
    Check,
    few,
    floor,
    gap,
    order_free,
    shown,
    wrong_sums,
)
from headway.check.subjects import Subject


def constant(subject: Subject) -> Outcome:
    tokens = few(subject)
    if subject.kind == "self":
        # A token among copies of itself finds what it finds alone.
        (x,) = subject.inputs(1)
        found = subject.run([np.repeat(x, tokens, axis=1)])
        wanted = np.broadcast_to(subject.run([x]), found.shape)
    else:
        queries, keys, values = subject.inputs(tokens)
        values = np.broadcast_to(values[:, :1, :1], values.shape)
        found = subject.run([queries, keys, values])
        wanted = np.broadcast_to(values[:, :1, :1], found.shape)
    worst = gap(found, wanted)
    ratio = float(np.median(found / np.where(wanted == 0, 1, wanted)))
    return verdict(
        worst <= subject.tolerance,
        f"values that are all the same come out different by {shown(worst)}",
        "the value itself: the weights of a query sum to 1",
        wrong_sums(subject)
        or (
            f"all weights are multiplied by {ratio:.4g}: rescaled for a dropout that is not live?"
            if gap(found, ratio * wanted) <= subject.tolerance and abs(ratio - 1) > 1e-3
            else "the weights of a query do not sum to 1: something is added to the sum, or taken "
            "away after it"
        ),
        "softmax(scores, dim=-1) as the last step before the values",
    )


def shifted(subject: Subject) -> Outcome:
    inputs = subject.inputs(few(subject))
    queries, keys, values = inputs
    queries[..., 0] = 1.0  # so that every score, of every query, grows by the same
    base = subject.run(inputs)
    away, near = (
        subject.run([queries, keys + shift * np.eye(1, keys.shape[-1]), values])
        for shift in (3000.0, 1.0)
    )
    worst, little = gap(away, base), gap(near, base)
    loose = 1e3 * subject.tolerance  # scores of thousands have fewer digits after the point
    return verdict(
        worst <= loose and little <= subject.tolerance,
        f"the same vector added to all keys changes the outputs by {shown(worst)} (3000) and "
        f"{shown(little)} (1)",
        "nothing: softmax knows differences of scores only",
        "exp overflows: the row's largest score is not taken away before it"
        if little <= subject.tolerance
        else "the weights depend on the scores' common size: no softmax, or one with more in its "
        "sum",
        "exp(scores - scores.amax(-1, keepdim=True)), or the library's softmax",
    )


def duplicated(subject: Subject) -> Outcome:
    tokens = subject.longest // 2
    inputs = subject.inputs(tokens)
    if subject.kind == "self":
        (x,) = inputs
        found, wanted = subject.run([np.tile(x, (1, 2, 1))])[:, :tokens], subject.run([x])
    else:
        queries, keys, values = (np.tile(each, (1, 1, 2, 1)) for each in inputs)
        found, wanted = subject.run([queries, keys, values])[..., :tokens, :], subject.run(inputs)
    worst = gap(found, wanted)
    return verdict(
        worst <= subject.tolerance,
        f"every key and value twice changes the outputs by {shown(worst)}",
        "nothing: each weight is halved, and there are two of it",
        "the number of keys takes part: in the scale, or in the sum",
        "scale by 1/sqrt(d_k), d_k = queries.shape[-1], whatever the number of keys",
    )


def scale(subject: Subject) -> Outcome:
    # With two keys and one-hot values the last query's weights are seen; the logarithm of their
    # ratio is the difference of the two scores.
    heads, width = subject.declared.heads, subject.declared.head_dim
    slopes, off = [], 0.0
    for seed in range(3):
        inputs = subject.inputs(2, seed=seed)
        # The same queries and keys in every head: which head reads which is not the question.
        queries, keys = inputs[0][:, :1], inputs[1][:, :1]
        inputs[:2] = (np.broadcast_to(each[:, :1], each.shape) for each in inputs[:2])
        last = subject.weights(inputs)[..., -1, :]
        odds = np.log(last[..., 1] / last[..., 0])
        products = (queries[:, :, -1] * (keys[:, :, 1] - keys[:, :, 0])).sum(
            axis=-1
        ) * np.ones_like(odds)
        slopes.append(float((odds * products).sum() / (products**2).sum()))
        off = max(off, gap(odds, products / width**0.5))
    slope = float(np.median(slopes))
    known = {
        f"no scale at all: scores of width {width} saturate the softmax": 1.0,
        "the scale is applied twice": 1 / width,
        "the scores are multiplied by sqrt(d_k)": width**0.5,
        "the root is missing or taken twice: 1/d_k^(1/4)": width**-0.25,
        f"scaled by the width of all heads ({heads * width}), not of one": (heads * width) ** -0.5,
        "scaled by the number of keys": 2**-0.5,
        "scaled by the number of heads": heads**-0.5,
        "the sign is wrong: the best key gets least": -(width**-0.5),
    }
    likely = [said for said, value in known.items() if abs(slope / value - 1) < 1e-3]
    return verdict(
        off <= 1e3 * subject.tolerance,
        f"log-odds of two keys are {slope:.4g} times the difference of their products",
        f"1/sqrt({width}) = {width**-0.5:.4g}",
        likely[0] if likely else "scores are no products of queries and keys by 1/sqrt(d_k)",
        "scores = queries @ keys.mT * queries.shape[-1] ** -0.5, once",
    )


def sharp(subject: Subject) -> Outcome:
    tokens = few(subject, subject.declared.head_dim)
    width = subject.declared.head_dim
    queries, keys, values = subject.inputs(tokens)
    best = 1
    # The same keys of length 1 in every head; the last query is the best one, made long.
    keys = keys[:, :1] / np.linalg.norm(keys[:, :1], axis=-1, keepdims=True)
    cosines = (keys @ keys[..., best, :, None])[..., 0]
    lead = 1 - np.delete(cosines, best, axis=-1).max()
    queries[..., -1, :] = keys[..., best, :] * 45.0 * width**0.5 / lead
    keys = np.broadcast_to(keys, values.shape)
    weights = subject.weights([queries, keys, values])[..., -1, :]
    weights = weights / weights.sum(axis=-1, keepdims=True)
    share = float(1 - weights[..., best].min()) if np.isfinite(weights).all() else float("nan")
    return verdict(
        share <= 3e-5 * subject.tolerance,
        f"a key that leads by a score of 45 leaves {shown(share)} to the others",
        f"at most {shown(np.exp(-45.0) * tokens)} (e^-45 each)",
        "weights have a floor, or scores a ceiling: they are clipped, capped or smoothed",
        "no clamp of scores or weights but a softcap that is asked for",
    )


def rotary(subject: Subject) -> Outcome:
    """The matrix by which a query at position p is turned against a key at 0, read off entry by
    entry: log-odds of a key e_j against a key of zeros."""
    width, place = subject.declared.head_dim, 3
    heads, kv_heads = subject.declared.heads, subject.kv_heads
    positions = np.array([0, place])
    turned, heads_alike = np.zeros((width, width)), True
    for j in range(width):
        # One query e_i a batch row, at position 3; a key e_j at 0, a key of zeros at 3.
        queries = np.zeros((width, heads, 2, width))
        queries[:, :, 1, :] = np.eye(width)[:, None]
        keys = np.zeros((width, kv_heads, 2, width))
        keys[:, :, 0, j] = 1.0
        last = subject.weights([queries, keys, keys], positions=positions)[:, :, -1]
        odds = np.log(last[..., 0] / last[..., 1]) * width**0.5
        heads_alike = heads_alike and gap(odds, odds[:, :1] * np.ones(heads)) <= subject.tolerance
        turned[j] = odds[:, 0]
    sees = np.abs(turned) > 1e3 * floor(subject)
    families = {"half": np.zeros_like(turned), "interleaved": np.zeros_like(turned)}
    frequencies = 10000.0 ** (-2 * np.arange(width // 2) / width)
    half = width // 2
    for pair, frequency in enumerate(frequencies):
        cos, sin = np.cos(place * frequency), np.sin(place * frequency)
        for name, (a, b) in {
            "half": (pair, pair + half),
            "interleaved": (2 * pair, 2 * pair + 1),
        }.items():
            families[name][[a, b], [a, b]] = cos
            families[name][b, a], families[name][a, b] = sin, -sin
    wanted = families[subject.declared.rotary]
    other = "half" if subject.declared.rotary == "interleaved" else "interleaved"
    # All keys and queries three places on: nothing changes.
    inputs = subject.inputs(few(subject))
    at = np.arange(few(subject))
    drift = gap(subject.run(inputs, positions=at + 3), subject.run(inputs, positions=at))
    partners = {"half": "i and i + d/2", "interleaved": "2i and 2i + 1"}
    seen = [
        name
        for name, matrix in families.items()
        if np.array_equal(
            sees & ~np.eye(width, dtype=bool), (matrix != 0) & ~np.eye(width, dtype=bool)
        )
    ]
    if not heads_alike:
        diagnosis = "heads are turned differently: some are not turned at all?"
    elif drift > 1e3 * subject.tolerance:
        diagnosis = "scores depend on the positions themselves, not on their difference: queries "
        diagnosis += "and keys are turned differently, or values are turned too"
    elif seen == [other]:
        diagnosis = f"the other family: features {partners[other]} are turned together"
    elif gap(turned, wanted.T) < 1e-6:
        diagnosis = "the direction is reversed: the sine has the wrong sign"
    else:
        diagnosis = "the angles are others: position * 10000^(-2i/d) is expected"
    return verdict(
        heads_alike and max(gap(turned, wanted), drift) <= 1e3 * subject.tolerance,
        f"pairs: {partners[seen[0]] if len(seen) == 1 else 'neither family'}; matrix off by "
        f"{shown(gap(turned, wanted))}; three places on changes {shown(drift)}",
        f"pairs {partners[subject.declared.rotary]}, turned by position * 10000^(-2i/d)",
        diagnosis,
        "half: cat(x1 * cos - x2 * sin, x2 * cos + x1 * sin); weights of one family need their own",
    )


FORMULA = r"softmax|exp\("
CHECKS = {
    "constant": Check(
        "the weights of a query sum to 1",
        constant,
        ("qkv", "self"),
        applies=lambda s: (
            "a block: a residual path and an MLP stand around the attention"
            if s.declared.block
            else "positions are added to the values"
            if s.declared.positions and s.kind == "self"
            else None
        ),
        look=FORMULA,
    ),
    "shifted": Check(
        "the same vector added to all keys changes nothing", shifted, ("qkv",), look=FORMULA
    ),
    "duplicated": Check(
        "every key and value twice changes nothing",
        duplicated,
        ("qkv", "self"),
        applies=order_free,
        look=r"sqrt|\*\*|shape|size\(|log|" + FORMULA,
    ),
    "scale": Check(
        "scores are products by 1/sqrt(d_k), once", scale, ("qkv",), look=r"sqrt|\*\*|scale"
    ),
    "sharp": Check("the best key can have all", sharp, ("qkv",), look=r"clamp|clip|tanh|eps|max"),
    "rotary": Check(
        "queries and keys are turned in the declared pairs",
        rotary,
        ("qkv",),
        ("positions",),
        look=r"cos|sin|rot",
    ),
}
