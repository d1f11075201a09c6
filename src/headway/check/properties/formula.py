"""Checks of the formula softmax(Q K^T / sqrt(d_k)) V (Vaswani et al. 2017, equation 1).

rotary: Su et al. 2021.
"""

import numpy as np

from headway.check.comparison import compare
from headway.check.core import core_of, scale_of
from headway.check.declaration import Declaration
from headway.check.findings import Outcome, not_tested, verdict
from headway.check.properties.check import BLOCK, digits, gap, order_free, promises, unless
from headway.check.subject import Subject
from headway.check.suspects.softmax import of_scale
from headway.check.suspects.steps import Call, Rotation

FORMULA = r"softmax|exp\("


@promises(
    "the weights of a query sum to 1",
    "qkv",
    "self",
    applies=unless(
        "sinks",
        "normalizer",
        also=lambda s: (
            BLOCK
            if s.declared.block
            else "positions are added to the values"
            if s.declared.positions and s.kind == "self"
            else None
        ),
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
        f"all weights are multiplied by {ratio:.4g}, perhaps by the rescaling of dropout"
        if gap(output, ratio * expected) <= subject.tolerance and abs(ratio - 1) > 1e-3
        else "the weights of a query do not sum to 1: a softmax over another axis, a term in the "
        "denominator of the softmax, or weights that are removed after the softmax; or equal "
        "tokens are not treated as equal, because something depends on positions",
        "softmax(scores, dim=-1) as the last step before the values",
    )


@promises(
    "adding a vector to all keys changes nothing",
    "qkv",
    applies=unless("sinks", "normalizer", "qk_norm", "softcap", "positions"),
    look=FORMULA,
)
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
    applies=unless("sinks", "normalizer", also=order_free),
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


@promises(
    "the context is softmax(queries keys^T / sqrt(d_k)) values, with the declared parts",
    "qkv",
    "self",
    applies=unless("normalizer", "qk_norm"),
    look=FORMULA,
)
def formula(subject: Subject) -> Outcome:
    core = core_of(subject)
    if core is None:
        return not_tested("queries, keys and values are not found in it")
    comparison = compare(subject, core)
    if comparison.heads is not None and comparison.suspect is None:
        return Outcome(
            "pass",
            f"the formula with {comparison.heads} heads gives the same outputs",
            "the same outputs",
        )
    if comparison.suspect is None:
        return not_tested("neither the formula nor a known fault gives the same outputs")
    return Outcome(
        "fail",
        "an attention with this fault gives the same outputs as yours; one without gives others",
        "the outputs of the formula",
        comparison.suspect.diagnosis,
        comparison.suspect.fix,
    )


def factor(subject: Subject) -> float:
    """Return the factor of the dot products that is declared, for kind "qkv"."""
    return subject.declared.scale or subject.declared.head_dim**-0.5


@promises(
    "scores are dot products times 1/sqrt(d_k)",
    "qkv",
    "self",
    applies=unless("normalizer", "qk_norm"),
    look=r"sqrt|\*\*|scale",
)
def scale(subject: Subject) -> Outcome:
    return _scale_of_function(subject) if subject.kind == "qkv" else _scale_of_module(subject)


def _scale_of_module(subject: Subject) -> Outcome:
    """Measure the scale between the projections of a module."""
    core, tokens = core_of(subject), _visible_pair(subject)
    if core is None:
        return not_tested("the scale is unknown: queries and keys are not found in it")
    measured = scale_of(core, tokens)
    if isinstance(measured, str):
        return not_tested(f"the scale is unknown: {measured}")
    longer = scale_of(core, 2 * tokens) if subject.declared.positions else measured
    if isinstance(longer, str) or abs(longer.factor / measured.factor - 1) > 1e-3:
        return not_tested("the scale depends on the position")
    expected = subject.declared.scale or measured.head_dim**-0.5
    return verdict(
        abs(measured.factor / expected - 1) <= 1e-3,
        f"dot products of queries and keys are multiplied by {measured.factor:.4g}",
        f"{expected:.4g}"
        if subject.declared.scale
        else f"1/sqrt({measured.head_dim}) = {expected:.4g}",
        _name_of_scale(measured.factor, measured.head_dim, core.widths[0] // measured.head_dim)
        or "the scale is another one than 1/sqrt(d_k)",
        "scores = queries @ keys.mT * queries.shape[-1] ** -0.5, once",
    )


def _name_of_scale(slope: float, width: int, heads: int) -> str | None:
    """Return the name of a wrong scale, measured with one batch row, or None if it is unknown."""
    queries = np.empty((1, heads, 2, width))
    call = Call(Declaration("qkv"), (2, 2), heads, heads)
    for suspect in of_scale():
        factor = suspect.steps.scale(queries, queries, call)
        if factor and abs(slope / factor - 1) < 1e-3:
            return suspect.diagnosis
    return None


def _scale_of_function(subject: Subject) -> Outcome:
    # Two keys and one-hot values show the weights of the last query; the logarithm of their ratio
    # is the difference of the two scores. It is compared with that of a query of zeros, so that a
    # bias by position does not matter. The first key is zero: it has a score of 0 at any position.
    heads, width = subject.declared.heads, subject.declared.head_dim
    slopes, off, cap = [], 0.0, subject.declared.softcap
    tokens = _visible_pair(subject)
    if tokens > min(width, subject.longest):
        return not_tested("the last query sees no earlier key")
    for seed in range(3):
        inputs = subject.inputs(tokens, seed=seed)
        # The same queries and keys in all heads, so that the assignment of heads does not matter.
        queries, keys = inputs[0][:, :1], inputs[1][:, :1]
        keys[..., :-1, :] = 0.0
        inputs[:2] = (np.broadcast_to(array[:, :1], array.shape) for array in inputs[:2])
        odds = _odds(subject, inputs) - _odds(subject, [np.zeros_like(inputs[0]), *inputs[1:]])
        products = (queries[:, :, -1] * keys[:, :, -1]).sum(axis=-1) * np.ones_like(odds)
        expected = products * factor(subject)
        off = max(off, gap(odds, expected if cap is None else cap * np.tanh(expected / cap)))
        slopes.append(float((odds * products).sum() / (products**2).sum()))
    slope = float(np.median(slopes))
    exact = 1e3 * subject.tolerance if subject.declared.scale is None else 1e-4
    return verdict(
        off <= exact,
        f"the log-odds of two keys are {slope:.4g} times the difference of their dot products",
        f"{factor(subject):.4g}"
        if subject.declared.scale
        else f"1/sqrt({width}) = {factor(subject):.4g}",
        _name_of_scale(slope, width, heads)
        or "the scores are not dot products of queries and keys times 1/sqrt(d_k)",
        "scores = queries @ keys.mT * queries.shape[-1] ** -0.5, once",
    )


def _odds(subject: Subject, inputs: list[np.ndarray]) -> np.ndarray:
    """Return the log-odds of the last key and the first one, for the last query."""
    last = subject.weights(inputs)[..., -1, :]
    return np.asarray(np.log(last[..., -1] / last[..., 0]))


def _visible_pair(subject: Subject) -> int:
    """Return the smallest number of tokens so that the last query sees the first key."""
    declared, tokens = subject.declared, 2
    while not declared.allowed(tokens, tokens, heads=declared.heads)[..., -1, 0].all():
        tokens += 1
        if tokens > 33:
            break
    return tokens


@promises(
    "one key can get all the weight",
    "qkv",
    applies=unless("normalizer", "qk_norm", "softcap", "positions"),
    look=r"clamp|clip|tanh|eps|max",
)
def sharp(subject: Subject) -> Outcome:
    tokens = min(subject.declared.head_dim, subject.longest)
    queries, keys, values = subject.inputs(tokens)
    # The key at the position of the last query is visible in every window.
    best = 1 if subject.declared.allowed(1, tokens).all() else tokens - 1
    # The same keys of length 1 in all heads; the last query is the best key, much longer.
    keys = keys[:, :1] / np.linalg.norm(keys[:, :1], axis=-1, keepdims=True)
    cosines = (keys @ keys[..., best, :, None])[..., 0]
    lead = 1 - np.delete(cosines, best, axis=-1).max()
    queries[..., -1, :] = keys[..., best, :] * 45.0 / factor(subject) / lead
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
        odds = np.log(last[..., 0] / last[..., 1]) / factor(subject)
        heads_agree = heads_agree and gap(odds, odds[:, :1] * np.ones(heads)) <= subject.tolerance
        rotation[j] = odds[:, 0]
    declared = subject.declared
    share = declared.rotary_share or 1.0
    base = declared.rotary_base or _base(rotation, declared.rotary, share, distance)
    angles = {
        pairs: Rotation(positions[1:], pairs, base, share)(np.eye(width)).T for pairs in PARTNERS
    }
    expected, off = angles[declared.rotary], gap(rotation, angles[declared.rotary])
    other = next(pairs for pairs in PARTNERS if pairs != declared.rotary)
    # Moving all positions by three must change nothing.
    inputs = subject.inputs(subject.few_tokens)
    at = np.arange(subject.few_tokens)
    drift = gap(subject.run(inputs, positions=at + 3), subject.run(inputs, positions=at))
    loose, is_usual = 1e3 * subject.tolerance, base > 9999 or declared.rotary_base is not None
    if not heads_agree:
        diagnosis = "heads are rotated differently, or some are not rotated"
    elif drift > loose:
        diagnosis = "scores depend on absolute positions, not on their difference: queries and "
        diagnosis += "keys are rotated differently"
    elif gap(rotation, np.eye(width)) <= loose:
        diagnosis = "positions have no effect: nothing is rotated"
    elif gap(rotation, angles[other]) <= loose:
        diagnosis = f"it uses the other convention: features {PARTNERS[other]} form a pair"
    elif gap(rotation, expected.T) <= loose:
        diagnosis = "the direction of the rotation is reversed: the sine has the wrong sign"
    elif off <= loose:
        diagnosis = f"the angles are those of the base {base:.4g}, which is unusually small: "
        diagnosis += "perhaps the exponent is i/d instead of 2i/d"
    else:
        diagnosis = "the angles are not position * base^(-2i/d), or only a part of the features "
        diagnosis += "is rotated"
    return verdict(
        heads_agree and is_usual and max(off, drift) <= loose,
        f"the rotation differs by {digits(off)} from pairs {PARTNERS[declared.rotary]} with the "
        f"base {base:,.4g}; adding 3 to all positions changes the outputs by {digits(drift)}",
        f"pairs {PARTNERS[declared.rotary]}, rotated by position * base^(-2i/d)",
        diagnosis,
        "half: cat(x1 * cos - x2 * sin, x2 * cos + x1 * sin), if the weights use this convention; "
        "for other angles declare rotary_base or rotary_share",
    )


PARTNERS = {"half": "i and i + d/2", "interleaved": "2i and 2i + 1"}


def _base(rotation: np.ndarray, pairs: str, share: float, distance: int) -> float:
    """Return the base of the angles, from the angle of the second pair; 10,000 if it has none."""
    width = int(len(rotation) * share) // 2 * 2
    if width < 4:
        return 10000.0
    first, second = (1, 1 + width // 2) if pairs == "half" else (2, 3)
    angle = np.arctan2(abs(rotation[first, second]), rotation[first, first])
    with np.errstate(all="ignore"):
        base = float((angle / distance) ** (-width / 2))
    return base if np.isfinite(base) and base > 1 else 10000.0


CHECKS = (formula, constant, shifted, duplicated, scale, sharp, rotary)
