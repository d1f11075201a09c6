"""Checks of masks: a masked key has no influence, as if it were absent.

softcap: Gemma 2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from headway.check.derivatives import gradients
from headway.check.errors import Refused
from headway.check.findings import Outcome, verdict
from headway.check.properties.check import digits, gap, influence, promises
from headway.check.properties.formula import factor
from headway.check.properties.order import MASKING
from headway.check.subject import Subject


def _padded(subject: Subject) -> tuple[list[np.ndarray], np.ndarray]:
    """Return inputs and a mask (True: attend) that differs between the batch rows.

    If the order of tokens matters, the mask hides the last tokens, so that masking shortens the
    text.
    """
    tokens = subject.few_tokens
    mask = np.ones((2, tokens), bool)
    mask[0, -1] = mask[1, -2:] = False
    if subject.declared.order_free:
        mask = np.random.default_rng(3).permuted(mask, axis=1)
    return subject.inputs(tokens), mask


@promises("masked keys have no influence", "qkv", "self", needs=("mask",), look=MASKING)
def masked(subject: Subject) -> Outcome:
    inputs, mask = _padded(subject)
    base = subject.run(inputs, mask=mask)
    hides, shows = 0.0, 0.0
    for row in range(2):
        other_masked = subject.changed(inputs, np.flatnonzero(~mask[row]), rows=row, size=5.0)
        other_visible = subject.changed(inputs, np.flatnonzero(mask[row])[:1], rows=row)
        out, other = (subject.run(arrays, mask=mask) for arrays in (other_masked, other_visible))
        # Only the outputs of tokens that were not changed are compared.
        rest = slice(None) if subject.kind == "qkv" else np.flatnonzero(mask[row])[1:]
        hides = max(hides, gap(out[row][..., rest, :], base[row][..., rest, :]))
        shows = max(shows, gap(other[row][..., rest, :], base[row][..., rest, :]))
    if hides > subject.noise >= shows:
        diagnosis = "the mask's meaning is reversed: it hides the keys that it should show (True "
        diagnosis += "means 'attend' in scaled_dot_product_attention, but 'masked' in "
        diagnosis += "nn.MultiheadAttention)"
    else:
        diagnosis = "masked keys have an influence: the mask is not applied to them or not to all, "
        diagnosis += "comes after the softmax, or uses a number that is not low enough"
    return verdict(
        hides <= subject.tolerance and shows > subject.noise,
        f"masked keys change the outputs by {digits(hides)}, others by {digits(shows)}",
        "0 by masked keys, more than 0 by others",
        diagnosis,
        "scores.masked_fill(~attend, -inf) before the softmax, with one mask per batch row",
    )


@promises("masking a key is like removing it", "qkv", "self", needs=("mask",), look=MASKING)
def deleted(subject: Subject) -> Outcome:
    inputs, mask = _padded(subject)
    out = subject.run(inputs, mask=mask)
    worst = 0.0
    for row in range(2):
        one = [array[row : row + 1] for array in inputs]
        kept = subject.cut(one, mask[row])
        if subject.kind == "qkv":
            # As many queries as keys, because some attentions require that.
            alone = subject.run([one[0][..., mask[row], :], *kept[1:]])[0]
            output = out[row][..., mask[row], :]
        else:
            alone, output = subject.run(kept)[0], out[row][mask[row]]
        worst = max(worst, gap(output, alone))
    return verdict(
        worst <= subject.tolerance,
        f"the outputs with keys masked and with keys removed differ by {digits(worst)}",
        "0: masking a key is like removing it",
        "masked keys still have an influence on the sum of the weights: their scores are not -inf, "
        "or their weights are removed after the softmax, so that the others do not sum to 1",
        "scores.masked_fill(~attend, -inf) before the softmax",
    )


@promises(
    "a mask and the causal mask apply together",
    "qkv",
    "self",
    needs=("mask", "causal"),
    look=MASKING,
)
def mask_and_causal(subject: Subject) -> Outcome:
    tokens = subject.few_tokens
    mask = np.ones((2, tokens), bool)
    mask[:, 1] = False
    sees = influence(subject, tokens, mask=mask, causal=True) > subject.noise
    future = bool(np.triu(sees, 1).any())
    shows_masked = bool(np.delete(sees[:, 1], 1).any())
    lost = not np.tril(sees, -1)[:, np.flatnonzero(mask[0])].any()
    return verdict(
        not (future or shows_masked or lost),
        f"with a mask and causal=True, later keys are {'visible' if future else 'masked'}, masked "
        f"keys are {'visible' if shows_masked else 'masked'}",
        "later keys and masked keys are both masked",
        "the mask replaces the causal one (for example, is_causal is ignored if a mask is given)"
        if future
        else "causal=True replaces the mask"
        if shows_masked
        else "together they mask all keys",
        "allowed = mask & causal_mask, once, before the softmax",
    )


@promises(
    "the output of a query with all keys masked is 0",
    "qkv",
    "self",
    needs=("mask",),
    applies=lambda s: "it has a residual connection" if s.declared.block else None,
    look=MASKING + "|softmax",
)
def dead_rows(subject: Subject) -> Outcome:
    tokens = subject.few_tokens
    inputs = subject.inputs(tokens)
    mask = np.ones((2, tokens), bool)
    mask[1] = False
    out = subject.run(inputs, mask=mask)
    finite = bool(np.isfinite(out).all())
    other = subject.changed(inputs, slice(None), rows=[1])
    size = float(np.abs(out[1]).max()) if finite else float("nan")
    if subject.kind == "self":  # a bias of the output is allowed, an influence of x is not
        size = gap(subject.run(other, mask=mask)[1], out[1]) if finite else size
    try:
        slopes = gradients(subject, inputs, np.ones_like(out), mask=mask)
    except Refused:
        slopes = []
    flowing = all(np.isfinite(slope).all() for slope in slopes)
    largest = max((float(np.abs(slope[1]).max()) for slope in slopes), default=0.0)
    good = finite and flowing and size <= subject.noise and largest <= subject.noise
    if not finite:
        diagnosis = "the output becomes NaN: a softmax in which all scores are -inf is 0/0"
    elif not flowing:
        diagnosis = (
            "its gradient is NaN: NaN was replaced in the output, but not in the backward pass"
        )
    else:
        diagnosis = "a query with all keys masked attends to all keys equally: the mask uses a "
        diagnosis += "finite number such as -1e9"
    return verdict(
        good,
        f"the output of such a query is {digits(size)}"
        + (f", its gradients {digits(largest) if flowing else 'NaN'}" if slopes else ""),
        "0, and gradients 0",
        diagnosis,
        "alive = allowed.any(-1, keepdim=True); softmax of where(alive, scores, 0), then "
        "where(alive, weights, 0)",
    )


@promises("a window of W has W keys", "qkv", needs=("window",), look="window")
def window(subject: Subject) -> Outcome:
    tokens, width = subject.few_tokens, 3
    if "cache" in subject.declared.features:
        lost = _keys_of_a_step(subject, width)
        if lost != width:
            return verdict(
                False,
                f"with window={width} a step of one token after a cache depends on {lost} keys",
                f"{width} keys, including its own position",
                "the window is lost in a step of one token after a cache (decode)"
                if lost > width
                else "the window is too narrow in a step of one token after a cache (decode)",
                "allowed = (key <= query) & (query - key < window), with query_position = keys - "
                "queries + row",
            )
    sees = influence(subject, tokens, window=width, **subject.causal_options) > subject.noise
    rows, columns = np.indices(sees.shape)
    expected = (columns <= rows) & (rows - columns < width)
    future, extent = bool(np.triu(sees, 1).any()), int(np.tril(sees)[-1].sum())
    return verdict(
        np.array_equal(sees, expected),
        f"with window={width} the last query sees {extent} keys"
        + (", and queries see later keys" if future else ""),
        f"{width} keys, including its own position: 0 <= query - key < {width}",
        f"the window is {extent} keys wide instead of {width}: < and <= are mixed up"
        if extent != width
        else "the window includes later keys"
        if future
        else "the window is not the same for every query",
        "allowed = (key <= query) & (query - key < window)",
    )


def _keys_of_a_step(subject: Subject, width: int) -> int:
    """Return on how many keys a single query at the end of more keys depends."""
    queries, keys, values = subject.inputs(subject.few_tokens)
    inputs = [queries[..., -1:, :], keys, values]
    options: dict[str, Any] = {"window": width, **subject.causal_options}
    base = subject.run(inputs, **options)
    return sum(
        gap(subject.run(subject.changed(inputs, [token]), **options), base) > subject.noise
        for token in range(subject.few_tokens)
    )


@promises("scores are capped before the mask", "qkv", needs=("softcap",), look="tanh|softcap")
def softcap(subject: Subject) -> Outcome:
    inputs, mask = _padded(subject)
    if "mask" in subject.declared.features:
        out = subject.run(inputs, mask=mask, softcap=2.0)
        other = [
            np.where(mask[:, None, :, None] | (i == 0), array, 5.0 - array)
            for i, array in enumerate(inputs)
        ]
        leak = gap(subject.run(other, mask=mask, softcap=2.0), out)
    else:
        leak = 0.0
    tokens = min(subject.declared.head_dim, subject.longest)
    queries, keys, values = subject.inputs(tokens)
    inputs = [3 * queries, keys, values]
    # log(weight) is the capped score, up to a constant of its row. The last query attends to all
    # keys, causal or not.
    raw = np.log(subject.weights(inputs, softcap=1e6)[..., -1, :])
    capped = np.log(subject.weights(inputs, softcap=2.0)[..., -1, :])
    repeated = np.repeat(keys, subject.declared.heads // subject.kv_heads, axis=1)
    scores = (inputs[0] @ repeated.swapaxes(-1, -2) * factor(subject))[..., -1, :]
    wrong = gap(_centred(capped), _centred(2.0 * np.tanh(scores / 2.0)))
    off = gap(_centred(raw), _centred(scores))
    return verdict(
        leak <= subject.tolerance and max(wrong, off) <= 1e3 * subject.tolerance,
        f"masked keys change the outputs by {digits(leak)}; the capped scores differ by "
        f"{digits(wrong)}",
        "0 and 0: the capped score is c * tanh(scaled score / c), computed before the mask",
        "the cap comes after the mask: tanh turns -inf into a score of -c"
        if leak > subject.tolerance
        else "the cap is a different function: of unscaled scores, or without the factor c",
        "scores = softcap * tanh(scores * scale / softcap), then mask",
    )


def _centred(scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores - scores.mean(axis=-1, keepdims=True))


def _mask_of_pairs(subject: Subject) -> str | None:
    features, full = subject.declared.features, subject.declared.mask_shape == "full"
    if subject.kind == "model":
        return None if "documents" in features else "the feature 'documents' is not declared"
    return None if "mask" in features and full else "it has no mask (queries, keys)"


@promises(
    "documents in one row do not attend to each other",
    "qkv",
    "model",
    applies=_mask_of_pairs,
    look=MASKING + "|document",
)
def documents(subject: Subject) -> Outcome:
    tokens, is_model = subject.few_tokens, subject.kind == "model"
    inputs = subject.inputs(tokens)
    ends = (3, min(4, tokens - 1))  # of the first document, not the same in both batch rows
    ids = (np.arange(tokens) >= np.array(ends)[:, None]).astype(np.int64)

    def packed(inputs: list[np.ndarray], ids: np.ndarray) -> np.ndarray:
        pairs = ids[:, :, None] == ids[:, None]
        return subject.run(inputs, **({"documents": ids} if is_model else {"mask": pairs}))

    def alone(part: slice, row: int) -> float:
        output = subject.run(subject.cut(inputs, part))[row]
        return gap(output, out[row][..., part, :])

    out = packed(inputs, ids)
    worst, mixed, moved = 0.0, 0.0, 0.0
    for row, end in enumerate(ends):
        first, second = slice(0, end), slice(end, None)
        if is_model:  # by default positions may continue in the second document
            other = packed(subject.changed(inputs, first, rows=[row]), ids)[row]
            worst = max(worst, gap(other[second], out[row][second]))
            moved = max(moved, alone(second, row) if subject.declared.restart else 0.0)
        else:
            worst = max(worst, alone(second, row))
        worst = max(worst, alone(first, row))
        mixed = max(mixed, gap(packed(inputs, ids[[row, row]])[row], out[row]))
    return verdict(
        max(worst, mixed, moved) <= subject.tolerance,
        f"packing two documents into a row changes the outputs by {digits(max(worst, moved))}"
        + (f"; documents of another row by {digits(mixed)}" if mixed > subject.tolerance else ""),
        "0: a document gives the same outputs alone",
        "a mask of pairs of tokens is not applied as it is given"
        if not is_model
        else "a row's outputs depend on the documents of another batch row: for example one mask "
        "or one row of positions is used for the whole batch"
        if mixed > subject.tolerance
        else "documents in one row attend to each other"
        if worst > subject.tolerance
        else "documents are apart, but the second one has other logits than alone: positions do "
        "not start at 0 in every document",
        "allowed = documents[:, :, None] == documents[:, None, :]"
        if max(worst, mixed) > subject.tolerance
        else "positions that count from the first token of each document",
    )


@promises(
    "padding on the left changes nothing",
    "model",
    needs=("mask",),
    look="position|arange|" + MASKING,
)
def padding(subject: Subject) -> Outcome:
    tokens = subject.few_tokens
    inputs = subject.inputs(tokens)
    mask = np.ones((2, tokens), bool)
    mask[0, :2] = False
    filled = subject.changed(inputs, slice(2), rows=[0])
    alone = subject.run([inputs[0][:1, 2:]])[0]
    beside = subject.run(inputs)[1]  # the row without padding

    def measured(run: Callable[..., np.ndarray]) -> tuple[float, float, float]:
        out, other = run(inputs, mask=mask), run(filled, mask=mask)
        return gap(out[0, 2:], alone), gap(other[0, 2:], out[0, 2:]), gap(out[1], beside)

    (worst, seen, mixed), where = measured(subject.run), ""
    cuts = [3, *range(5, tokens)]  # a chunk with the padding, one of two tokens, then steps
    if max(worst, mixed) <= subject.tolerance and _has_right_cache(subject, inputs, cuts, alone):
        where = "with a cache, "
        try:
            worst, seen, mixed = measured(partial(subject.chunks, cuts=cuts))
        except Refused as error:
            where = f"not tested with a cache ({error}); without, "
    if seen > subject.noise:
        fault = "tokens attend to padding: the padding mask is ignored, or does not hide all of it"
    elif worst > subject.tolerance and where:
        fault = "padding is not seen, but a later chunk has wrong positions (they count padding, "
        fault += "or do not continue), or its mask is not aligned with the cache"
    elif worst > subject.tolerance:
        fault = "padding is not seen, but it has positions, so that the text begins at position 2"
    else:
        fault = "padding of one batch row changes another row: for example one mask or one row of "
        fault += "positions is used for the whole batch"
    return verdict(
        max(worst, mixed) <= subject.tolerance,
        f"{where}two tokens of padding on the left change the logits by {digits(worst)}; their "
        f"contents change them by {digits(seen)}"
        + (f"; another row changes by {digits(mixed)}" if mixed > subject.tolerance else ""),
        "0: a padded text gives the same logits alone",
        where + fault,
        "positions = (mask.cumsum(-1) - 1).clamp(min=0), and the mask in every layer"
        + (" and every step" if where else ""),
    )


def _has_right_cache(
    subject: Subject, inputs: list[np.ndarray], cuts: list[int], alone: np.ndarray
) -> bool:
    """Whether it has a cache that gives right logits without padding."""
    if "cache" not in subject.declared.features:
        return False
    try:
        output = subject.chunks([inputs[0][:1, 2:]], [cut - 2 for cut in cuts])
    except Refused:  # the check `cache` tells why
        return False
    return gap(output[0], alone) <= subject.tolerance


CHECKS = (masked, deleted, mask_and_causal, dead_rows, window, softcap, documents, padding)
