"""Checks of the formula softmax(Q K^T / sqrt(d_k)) V (Vaswani et al. 2017, equation 1).

rotary: Su et al. 2021.
"""

import numpy as np

from headway.check.findings import Outcome, verdict
from headway.check.properties.check import BLOCK, digits, gap, order_free, promises, wrong_sums
from headway.check.subject import Subject

FORMULA = r"softmax|exp\("


@promises(
    "the weights of a query sum to 1",
    "qkv",
    "self",
    applies=lambda s: (
        BLOCK
        if s.declared.block
        else "positions are added to the values"
        if s.declared.positions and s.kind == "self"
        else None
    ),
    look=FORMULA,
)
def constant(subject: Subject) -> Outcome:
    tokens = subject.few_tokens
    if subject.kind == "self":
        # The output of a token among copies of itself is that of the token alone.
        (x,) = subject.inputs(1)
        output = subject.run([np.repeat(x, tokens, axis=1)])
        expected = np.broadcast_to(subject.run([x]), output.shape)
    else:
        queries, keys, values = subject.inputs(tokens)
        values = np.broadcast_to(values[:, :1, :1], values.shape)
        output = subject.run([queries, keys, values])
        expected = np.broadcast_to(values[:, :1, :1], output.shape)
    worst = gap(output, expected)
    ratio = float(np.median(output / np.where(expected == 0, 1, expected)))
    return verdict(
        worst <= subject.tolerance,
        f"for equal values the output differs from the value by {digits(worst)}",
        "0, because the weights of a query sum to 1",
        wrong_sums(subject)
        or (
            f"all weights are multiplied by {ratio:.4g}, perhaps by the rescaling of dropout"
            if gap(output, ratio * expected) <= subject.tolerance and abs(ratio - 1) > 1e-3
            else "the weights of a query do not sum to 1: a term is added to the denominator of "
            "the softmax, or weights are removed after the softmax"
        ),
        "softmax(scores, dim=-1) as the last step before the values",
    )


@promises("adding a vector to all keys changes nothing", "qkv", look=FORMULA)
def shifted(subject: Subject) -> Outcome:
    inputs = subject.inputs(subject.few_tokens)
    queries, keys, values = inputs
    queries[..., 0] = 1.0  # so that all scores increase by the same number
    base = subject.run(inputs)
    far, near = (
        subject.run([queries, keys + shift * np.eye(1, keys.shape[-1]), values])
        for shift in (3000.0, 1.0)
    )
    worst, little = gap(far, base), gap(near, base)
    loose = 1e3 * subject.tolerance  # scores in the thousands have larger rounding errors
    return verdict(
        worst <= loose and little <= subject.tolerance,
        f"adding a vector to all keys changes the outputs by {digits(worst)} (length 3000) and "
        f"{digits(little)} (length 1)",
        "0, because softmax depends on differences of scores only",
        "exp overflows: the largest score of the row is not subtracted first"
        if little <= subject.tolerance
        else "the weights depend on a common offset of the scores: this is no softmax, or its "
        "denominator has an additional term",
        "exp(scores - scores.amax(-1, keepdim=True)), or the library's softmax",
    )


@promises(
    "repeating all keys and values changes nothing",
    "qkv",
    "self",
    applies=order_free,
    look=r"sqrt|\*\*|shape|size\(|log|" + FORMULA,
)
def duplicated(subject: Subject) -> Outcome:
    tokens = subject.longest // 2
    inputs = subject.inputs(tokens)
    if subject.kind == "self":
        (x,) = inputs
        output, expected = subject.run([np.tile(x, (1, 2, 1))])[:, :tokens], subject.run([x])
    else:
        twice = [np.tile(array, (1, 1, 2, 1)) for array in inputs]
        output, expected = subject.run(twice)[..., :tokens, :], subject.run(inputs)
    worst = gap(output, expected)
    return verdict(
        worst <= subject.tolerance,
        f"repeating all keys and values changes the outputs by {digits(worst)}",
        "0, because each weight is halved and occurs twice",
        "the scale or the sum depends on the number of keys",
        "scale by 1/sqrt(d_k), with d_k = queries.shape[-1]",
    )


@promises("scores are dot products times 1/sqrt(d_k)", "qkv", look=r"sqrt|\*\*|scale")
def scale(subject: Subject) -> Outcome:
    # Two keys and one-hot values show the weights of the last query; the logarithm of their ratio
    # is the difference of the two scores.
    heads, width = subject.declared.heads, subject.declared.head_dim
    slopes, off = [], 0.0
    for seed in range(3):
        inputs = subject.inputs(2, seed=seed)
        # The same queries and keys in all heads, so that the assignment of heads does not matter.
        queries, keys = inputs[0][:, :1], inputs[1][:, :1]
        inputs[:2] = (np.broadcast_to(array[:, :1], array.shape) for array in inputs[:2])
        last = subject.weights(inputs)[..., -1, :]
        odds = np.log(last[..., 1] / last[..., 0])
        difference = keys[:, :, 1] - keys[:, :, 0]
        products = (queries[:, :, -1] * difference).sum(axis=-1) * np.ones_like(odds)
        slopes.append(float((odds * products).sum() / (products**2).sum()))
        off = max(off, gap(odds, products / width**0.5))
    slope = float(np.median(slopes))
    known = {
        f"no scale at all: scores of width {width} saturate the softmax": 1.0,
        "the scale is applied twice": 1 / width,
        "the scores are multiplied by sqrt(d_k)": width**0.5,
        "the square root is taken twice: 1/d_k^(1/4)": width**-0.25,
        f"scaled by the width of all heads ({heads * width}), not of one": (heads * width) ** -0.5,
        "scaled by the number of keys": 2**-0.5,
        "scaled by the number of heads": heads**-0.5,
        "the sign is wrong: the best key gets the smallest weight": -(width**-0.5),
    }
    likely = [name for name, value in known.items() if abs(slope / value - 1) < 1e-3]
    return verdict(
        off <= 1e3 * subject.tolerance,
        f"the log-odds of two keys are {slope:.4g} times the difference of their dot products",
        f"1/sqrt({width}) = {width**-0.5:.4g}",
        likely[0]
        if likely
        else "the scores are not dot products of queries and keys times 1/sqrt(d_k)",
        "scores = queries @ keys.mT * queries.shape[-1] ** -0.5, once",
    )


@promises("one key can get all the weight", "qkv", look=r"clamp|clip|tanh|eps|max")
def sharp(subject: Subject) -> Outcome:
    tokens = min(subject.declared.head_dim, subject.longest)
    width = subject.declared.head_dim
    queries, keys, values = subject.inputs(tokens)
    best = 1
    # The same keys of length 1 in all heads; the last query is the best key, much longer.
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
        f"a key whose score is 45 larger leaves a weight of {digits(share)} to the others",
        f"at most {digits(np.exp(-45.0) * tokens)} (e^-45 each)",
        "weights or scores are clipped, capped or smoothed",
        "do not clamp scores or weights; use softcap only if it is requested",
    )


@promises(
    "queries and keys are rotated in the declared pairs",
    "qkv",
    needs=("positions",),
    look=r"cos|sin|rot",
)
def rotary(subject: Subject) -> Outcome:
    """Measure the matrix of the rotation between a query and a key.

    Each entry is the log-odds of a key e_j and a key of zeros.
    """
    width, distance = subject.declared.head_dim, 3
    heads, kv_heads = subject.declared.heads, subject.kv_heads
    positions = np.array([0, distance])
    rotation, heads_agree = np.zeros((width, width)), True
    for j in range(width):
        # One query e_i per batch row, at position 3; a key e_j at 0, a key of zeros at 3.
        queries = np.zeros((width, heads, 2, width))
        queries[:, :, 1, :] = np.eye(width)[:, None]
        keys = np.zeros((width, kv_heads, 2, width))
        keys[:, :, 0, j] = 1.0
        last = subject.weights([queries, keys, keys], positions=positions)[:, :, -1]
        odds = np.log(last[..., 0] / last[..., 1]) * width**0.5
        heads_agree = heads_agree and gap(odds, odds[:, :1] * np.ones(heads)) <= subject.tolerance
        rotation[j] = odds[:, 0]
    nonzero = np.abs(rotation) > 1e3 * subject.noise
    pair = np.arange(width // 2)
    angle = distance * 10000.0 ** (-2 * pair / width)
    families = {"half": np.zeros_like(rotation), "interleaved": np.zeros_like(rotation)}
    pairs = ((pair, pair + width // 2), (2 * pair, 2 * pair + 1))
    for matrix, (a, b) in zip(families.values(), pairs, strict=True):
        matrix[a, a] = matrix[b, b] = np.cos(angle)
        matrix[b, a], matrix[a, b] = np.sin(angle), -np.sin(angle)
    expected = families[subject.declared.rotary]
    other = "half" if subject.declared.rotary == "interleaved" else "interleaved"
    # Moving all positions by three must change nothing.
    inputs = subject.inputs(subject.few_tokens)
    at = np.arange(subject.few_tokens)
    drift = gap(subject.run(inputs, positions=at + 3), subject.run(inputs, positions=at))
    partners = {"half": "i and i + d/2", "interleaved": "2i and 2i + 1"}
    off_diagonal = ~np.eye(width, dtype=bool)
    matching = [
        name
        for name, matrix in families.items()
        if np.array_equal(nonzero & off_diagonal, (matrix != 0) & off_diagonal)
    ]
    if not heads_agree:
        diagnosis = "heads are rotated differently, or some are not rotated"
    elif drift > 1e3 * subject.tolerance:
        diagnosis = "scores depend on absolute positions, not on their difference: queries and "
        diagnosis += "keys are rotated differently, or values are rotated, too"
    elif matching == [other]:
        diagnosis = f"it uses the other convention: features {partners[other]} form a pair"
    elif gap(rotation, expected.T) < 1e-6:
        diagnosis = "the direction is reversed: the sine has the wrong sign"
    else:
        diagnosis = "the angles are not position * 10000^(-2i/d)"
    return verdict(
        heads_agree and max(gap(rotation, expected), drift) <= 1e3 * subject.tolerance,
        f"pairs: {partners[matching[0]] if len(matching) == 1 else 'unknown'}; the rotation "
        f"differs by {digits(gap(rotation, expected))}; adding 3 to all positions changes the "
        f"outputs by {digits(drift)}",
        f"pairs {partners[subject.declared.rotary]}, rotated by position * 10000^(-2i/d)",
        diagnosis,
        "half: cat(x1 * cos - x2 * sin, x2 * cos + x1 * sin), if the weights use this convention",
    )


CHECKS = (constant, shifted, duplicated, scale, sharp, rotary)
