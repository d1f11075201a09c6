"""What a mask hides stays hidden, and hiding is the same as not being there.

Each function is a check; what it promises stands in the table at the end. softcap: Gemma 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.check.findings import Outcome, verdict
from headway.check.properties.check import Check, few, floor, gap, influence, shown
from headway.check.properties.order import MASKING
from headway.check.subjects import Refused, Subject


def _padded(subject: Subject) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs, and which of their keys may be seen: other ones in each batch row.

    A subject whose tokens are no set keeps its first tokens, so that hiding is like ending there.
    """
    tokens = few(subject)
    seen = np.ones((2, tokens), bool)
    seen[0, -1] = seen[1, -2:] = False
    if subject.order_free:
        seen = np.random.default_rng(3).permuted(seen, axis=1)
    return subject.inputs(tokens), seen


def hidden(subject: Subject) -> Outcome:
    inputs, seen = _padded(subject)
    base = subject.run(inputs, mask=seen)
    hides, shows = 0.0, 0.0
    for row in range(2):
        masked = subject.changed(inputs, np.flatnonzero(~seen[row]), rows=row, size=5.0)
        visible = subject.changed(inputs, np.flatnonzero(seen[row])[:1], rows=row)
        out, other = (subject.run(each, mask=seen) for each in (masked, visible))
        # Of the outputs, those of tokens that were not changed themselves.
        rest = slice(None) if subject.kind == "qkv" else np.flatnonzero(seen[row])[1:]
        hides = max(hides, gap(out[row][..., rest, :], base[row][..., rest, :]))
        shows = max(shows, gap(other[row][..., rest, :], base[row][..., rest, :]))
    if hides > floor(subject) >= shows:
        diagnosis = "the mask's meaning is reversed: the keys to attend to are hidden, and the "
        diagnosis += "hidden ones are seen (True is 'attend' in scaled_dot_product_attention, "
        diagnosis += "'hide' in nn.MultiheadAttention)"
    else:
        diagnosis = "hidden keys take part: the mask is not applied, is of another batch row, comes"
        diagnosis += " after the softmax without a new sum, or its number is not low enough"
    return verdict(
        hides <= subject.tolerance and shows > floor(subject),
        f"hidden keys change the outputs by {shown(hides)}, visible ones by {shown(shows)}",
        "0 by hidden keys, and not 0 by visible ones",
        diagnosis,
        "scores.masked_fill(~attend, -inf) before the softmax, with one mask for each batch row",
    )


def deleted(subject: Subject) -> Outcome:
    inputs, seen = _padded(subject)
    out = subject.run(inputs, mask=seen)
    worst = 0.0
    for row in range(2):
        one = [each[row : row + 1] for each in inputs]
        kept = subject.cut(one, seen[row])
        if subject.kind == "qkv":
            # As many queries as keys remain, for those that want it so.
            alone = subject.run([one[0][..., seen[row], :], *kept[1:]])[0]
            found = out[row][..., seen[row], :]
        else:
            alone, found = subject.run(kept)[0], out[row][seen[row]]
        worst = max(worst, gap(found, alone))
    return verdict(
        worst <= subject.tolerance,
        f"with hidden keys and without them the outputs differ by {shown(worst)}",
        "hiding a key is the same as not giving it",
        "hidden keys are not gone: their scores are 0 instead of -inf, or their weights are removed"
        " after the softmax, so that the rest does not sum to 1",
        "scores.masked_fill(~attend, -inf) before the softmax",
    )


def together(subject: Subject) -> Outcome:
    tokens = few(subject)
    seen = np.ones((2, tokens), bool)
    seen[:, 1] = False
    sees = influence(subject, tokens, mask=seen, causal=True) > floor(subject)
    future = bool(np.triu(sees, 1).any())
    masked = bool(np.delete(sees[:, 1], 1).any())
    lost = not np.tril(sees, -1)[:, np.flatnonzero(seen[0])].any()
    return verdict(
        not (future or masked or lost),
        f"with mask and causal together, later keys are {'seen' if future else 'hidden'}, masked "
        f"keys are {'seen' if masked else 'hidden'}",
        "both hold: later keys and masked keys are hidden",
        "the mask replaces the causal one (as when is_causal is ignored next to a mask)"
        if future
        else "causal=True replaces the mask"
        if masked
        else "together they hide everything",
        "allowed = mask & causal_mask, once, before the softmax",
    )


def dead(subject: Subject) -> Outcome:
    tokens = few(subject)
    inputs = subject.inputs(tokens)
    seen = np.ones((2, tokens), bool)
    seen[1] = False
    out = subject.run(inputs, mask=seen)
    finite = bool(np.isfinite(out).all())
    other = subject.changed(inputs, slice(None), rows=[1])
    own = float(np.abs(out[1]).max()) if finite else float("nan")
    if subject.kind == "self":  # a bias of the output may remain; the contents may not
        own = gap(subject.run(other, mask=seen)[1], out[1]) if finite else own
    try:
        gradients = subject.gradients(inputs, np.ones_like(out), mask=seen)
    except Refused:
        gradients = []
    flowing = all(np.isfinite(each).all() for each in gradients)
    largest = max((float(np.abs(each[1]).max()) for each in gradients), default=0.0)
    good = finite and flowing and own <= floor(subject) and largest <= floor(subject)
    if not finite:
        diagnosis = "a query with nothing to attend to becomes NaN: softmax of -inf alone is 0/0"
    elif not flowing:
        diagnosis = "its gradient is NaN: NaN was replaced in the output, and is still behind it"
    else:
        diagnosis = "a query with nothing to attend to attends to all alike: the mask's number is "
        diagnosis += "finite (such as -1e9), so that the softmax cannot tell"
    return verdict(
        good,
        f"such a query's output is {shown(own)}"
        + (f", its gradients {shown(largest) if flowing else 'NaN'}" if gradients else ""),
        "0, and gradients 0",
        diagnosis,
        "alive = allowed.any(-1, keepdim=True); softmax of where(alive, scores, 0), then "
        "where(alive, weights, 0)",
    )


def window(subject: Subject) -> Outcome:
    tokens, width = few(subject), 3
    sees = influence(subject, tokens, window=width, **subject.causal) > floor(subject)
    rows, columns = np.indices(sees.shape)
    wanted = (columns <= rows) & (rows - columns < width)
    future, extent = bool(np.triu(sees, 1).any()), int(np.tril(sees)[-1].sum())
    return verdict(
        np.array_equal(sees, wanted),
        f"with window={width} the last query sees {extent} keys"
        + (", and queries see later keys" if future else ""),
        f"{width} keys, itself included: 0 <= query - key < {width}",
        f"the window is {extent} keys wide instead of {width}: < and <= are mixed up"
        if extent != width
        else "the window looks into the future"
        if future
        else "the window is not the same for every query",
        "allowed = (key <= query) & (query - key < window)",
    )


def softcap(subject: Subject) -> Outcome:
    inputs, seen = _padded(subject)
    if "mask" in subject.declared.features:
        masked = subject.run(inputs, mask=seen, softcap=2.0)
        other = [
            np.where(seen[:, None, :, None] | (i == 0), each, 5.0 - each)
            for i, each in enumerate(inputs)
        ]
        leak = gap(subject.run(other, mask=seen, softcap=2.0), masked)
    else:
        leak = 0.0
    tokens = few(subject, subject.declared.head_dim)
    queries, keys, values = subject.inputs(tokens)
    inputs = [3 * queries, keys, values]
    # log(weight) is the capped score, but for a constant of its row.
    # The last query sees every key, causal or not.
    raw = np.log(subject.weights(inputs, softcap=1e6)[..., -1, :])
    capped = np.log(subject.weights(inputs, softcap=2.0)[..., -1, :])
    repeated = np.repeat(keys, subject.declared.heads // subject.kv_heads, axis=1)
    scores = (inputs[0] @ repeated.swapaxes(-1, -2) / subject.declared.head_dim**0.5)[..., -1, :]
    wrong = gap(_centred(capped), _centred(2.0 * np.tanh(scores / 2.0)))
    off = gap(_centred(raw), _centred(scores))
    return verdict(
        leak <= subject.tolerance and max(wrong, off) <= 1e3 * subject.tolerance,
        f"hidden keys change the outputs by {shown(leak)}; the capped scores are off by "
        f"{shown(wrong)}",
        "0; c * tanh(score / c) of the scaled score, before the mask",
        "the cap comes after the mask: tanh makes -inf a score of -c, which is seen"
        if leak > subject.tolerance
        else "the cap is another function: of unscaled scores, or without the factor c",
        "scores = softcap * tanh(scores * scale / softcap), then mask",
    )


def _centred(scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores - scores.mean(axis=-1, keepdims=True))


def documents(subject: Subject) -> Outcome:
    tokens = few(subject)
    inputs = subject.inputs(tokens)
    ids = np.repeat([0, 1], [3, tokens - 3])
    options: dict[str, Any]
    if subject.kind == "model":
        options = {"documents": np.broadcast_to(ids, inputs[0].shape)}
    else:
        options = {"mask": np.broadcast_to(ids[:, None] == ids, (2, tokens, tokens))}
    out = subject.run(inputs, **options)
    worst = 0.0
    # Positions go on over the border, or begin anew; the first document shows nothing of either.
    if subject.kind == "model":
        other = subject.changed(inputs, slice(0, 3))
        worst = gap(subject.run(other, **options)[:, 3:], out[:, 3:])
        worst = max(worst, gap(subject.run(subject.cut(inputs, slice(0, 3))), out[:, :3]))
    else:
        for part in (slice(0, 3), slice(3, None)):
            worst = max(worst, gap(subject.run(subject.cut(inputs, part)), out[..., part, :]))
    return verdict(
        worst <= subject.tolerance,
        f"packed with another document the outputs differ by {shown(worst)}",
        "a document in a packed row gives what it gives alone",
        "documents packed into one row see each other",
        "allowed = documents[:, :, None] == documents[:, None, :], for every query its own row",
    )


def _mask_of_pairs(subject: Subject) -> str | None:
    features, full = subject.declared.features, subject.declared.mask_shape == "full"
    if subject.kind == "model":
        return None if "documents" in features else "the feature 'documents' is not declared"
    return None if "mask" in features and full else "there is no mask that says who sees whom"


def padding(subject: Subject) -> Outcome:
    tokens = few(subject)
    inputs = subject.inputs(tokens)
    alone = subject.run([inputs[0][:1, 2:]])
    seen = np.ones((2, tokens), bool)
    seen[0, :2] = False
    worst = gap(subject.run(inputs, mask=seen)[:1, 2:], alone)
    return verdict(
        worst <= subject.tolerance,
        f"two tokens of padding at the left change the logits by {shown(worst)}",
        "a text padded at its left, beside a longer one, gives what it gives alone",
        "padding is seen, or positions count it: the first token of the text is at position 2",
        "positions = (mask.cumsum(-1) - 1).clamp(min=0), and the mask in every layer",
    )


CHECKS = {
    "masked": Check(
        "masked keys have no influence", hidden, ("qkv", "self"), ("mask",), look=MASKING
    ),
    "deleted": Check(
        "masking a key is like not giving it", deleted, ("qkv", "self"), ("mask",), look=MASKING
    ),
    "mask-and-causal": Check(
        "a mask and the causal mask both hold",
        together,
        ("qkv", "self"),
        ("mask", "causal"),
        look=MASKING,
    ),
    "dead-rows": Check(
        "a query with nothing to attend to gets 0",
        dead,
        ("qkv", "self"),
        ("mask",),
        applies=lambda s: "a residual path stands beside it" if s.declared.block else None,
        look=MASKING + "|softmax",
    ),
    "window": Check("a window of W shows W keys", window, ("qkv",), ("window",), look="window"),
    "softcap": Check(
        "scores are capped before the mask", softcap, ("qkv",), ("softcap",), look="tanh|softcap"
    ),
    "documents": Check(
        "documents packed into one row do not see each other",
        documents,
        ("qkv", "model"),
        applies=_mask_of_pairs,
        look=MASKING + "|document",
    ),
    "padding": Check(
        "padding at the left changes nothing",
        padding,
        ("model",),
        ("mask",),
        look="position|arange|" + MASKING,
    ),
}
