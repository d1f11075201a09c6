"""Checks of which tokens influence an output: all earlier ones, no later one, no other batch row.

The test of leaks by gradients comes from nanodo; grouped heads: Ainslie et al. 2023.
"""

import numpy as np

from headway.check.derivatives import gradients
from headway.check.errors import Refused
from headway.check.findings import Outcome, not_applicable, verdict
from headway.check.properties.check import (
    can_be_causal,
    digits,
    gap,
    influence,
    order_free,
    promises,
    weights_alone,
    wrong_sums,
)
from headway.check.subject import Subject

UNDECLARED = "it is causal, but was not declared causal"
LONG = 193  # neither 193 nor 193 // 2 is a multiple of a usual tile size (a power of 2)
MASKING = r"mask|tril|triu|causal|-inf|infinity"


@promises("no token depends on a later one", applies=can_be_causal, look=MASKING)
def future(subject: Subject) -> Outcome:
    tokens = subject.few_tokens
    changes = influence(subject, tokens, **subject.causal_options)
    ahead = np.triu(changes, 1)
    row, column = np.unravel_index(ahead.argmax(), ahead.shape)
    worst = float(ahead.max())
    measured = f"none of {tokens} tokens changes an earlier output"
    if worst > subject.noise:
        measured = f"the output of token {row} changes by {digits(worst)} with token {column}"
    else:  # masks that are computed by tiles, or cached for one length, leak in longer texts only
        inputs = subject.inputs(subject.longest)
        base = subject.run(inputs, **subject.causal_options)
        for token in range(tokens, subject.longest, 5):
            other = subject.run(subject.changed(inputs, [token]), **subject.causal_options)
            leak = gap(other[..., :token, :], base[..., :token, :])
            if leak > worst:
                worst = leak
                measured = f"earlier outputs change by {digits(worst)} with token {token}"
        worst = max(worst, long := _in_long_texts(subject))
        if long > subject.noise:
            measured = f"in a text of {LONG} tokens earlier outputs change by {digits(long)}"
    return verdict(
        worst <= subject.noise,
        measured,
        "no output changes with a later token",
        _leak(subject, changes),
        "set scores with key > query to -inf before the softmax: "
        "scores.masked_fill(torch.triu(ones, diagonal=1).bool(), -inf)",
    )


def _in_long_texts(subject: Subject) -> float:
    """Return how much the outputs of the first half of a long text change with the second half.

    Returns 0 if the attention does not accept such a long text.
    """
    try:
        inputs = subject.inputs(LONG)
        base = subject.run(inputs, **subject.causal_options)
        changed = subject.changed(inputs, slice(LONG // 2, None))
        other = subject.run(changed, **subject.causal_options)
    except Refused:
        return 0.0
    return gap(other[..., : LONG // 2, :], base[..., : LONG // 2, :])


def _leak(subject: Subject, changes: np.ndarray) -> str:
    """Describe the kind of leak."""
    visible, above = changes > subject.noise, np.triu(np.ones_like(changes, bool), 1)
    ahead, behind = visible & above, np.tril(visible, -1)
    sums = wrong_sums(subject)
    if sums is not None:
        return sums
    if not ahead.any():
        return "only long texts leak: check masks that are computed by tiles or for one length"
    if not behind.any():
        return "the mask's meaning is reversed: tokens attend to later tokens, not to earlier ones"
    if np.array_equal(ahead, above & ~np.triu(above, 2)):
        return "the mask is shifted by one: tokens attend to the next one (see diagonal= of triu)"
    if not np.array_equal(ahead, above):
        return (
            "tokens and features are mixed: heads are split by a view or reshape without a "
            "transpose, or the mask has the wrong shape"
        )
    if changes[above].max() < 1e-2 * np.median(np.diag(changes)):
        return "later tokens have a small influence: masked scores are not low enough"
    return (
        "there is no causal mask, or it comes after the softmax, so that later tokens are part of "
        "the sum"
    )


def _leak_if_any(subject: Subject) -> str | None:
    """Return the kind of leak, or None; for other checks that fail because of a leak."""
    changes = influence(subject, subject.few_tokens, **subject.causal_options)
    return _leak(subject, changes) if np.triu(changes, 1).max() > subject.noise else None


@promises(
    "every token depends on itself",
    applies=lambda s: (
        "it has a residual connection"
        if s.declared.block and s.kind == "self"
        else can_be_causal(s)
    ),
    look=MASKING,
)
def present(subject: Subject) -> Outcome:
    changes = np.diag(influence(subject, subject.few_tokens, **subject.causal_options))
    return verdict(
        bool((changes > subject.noise).all()),
        f"changing token {int(changes.argmin())} changes its output by {digits(changes.min())}",
        "every token attends to itself",
        "the mask also hides the token itself: key < query instead of key <= query"
        if subject.kind != "model"
        else "the tokens are shifted inside the model: logits[t] does not depend on token t",
        "mask with triu(diagonal=1), not diagonal=0; shift labels in the loss, not tokens",
    )


@promises("every token depends on all tokens that it may attend to", look=MASKING)
def past(subject: Subject) -> Outcome:
    tokens = subject.few_tokens
    changes = influence(subject, tokens, **subject.causal_options)
    causal = subject.declared.always_causal or bool(subject.causal_options)
    expected = np.tri(tokens, k=-1, dtype=bool) if causal else ~np.eye(tokens, dtype=bool)
    missing = expected & (changes <= subject.noise)
    if not causal and np.array_equal(changes > subject.noise, np.tri(tokens, dtype=bool)):
        return verdict(
            False,
            "no token attends to a later one",
            "without causal=True every token attends to all tokens",
            UNDECLARED,
            "declare causal=True (--causal)",
        )
    near = int((changes[-1] > subject.noise).sum())
    as_window = np.tri(tokens, dtype=bool) & ~np.tri(tokens, k=-near, dtype=bool)
    row, column = np.unravel_index(missing.argmax(), missing.shape)
    return verdict(
        not missing.any(),
        f"{int(missing.sum())} of {int(expected.sum())} pairs of tokens have no influence"
        + (f"; token {row} does not depend on token {column}" if missing.any() else ""),
        "every token depends on all tokens that it may attend to",
        f"the last token depends on the last {near} only: a window that was not declared"
        if np.array_equal(changes > subject.noise, as_window)
        else "tokens are missing: a mask or a slice hides too much, or heads are split by a view "
        "or reshape without a transpose",
        "check the mask's diagonal and shape, and slices of keys and values",
    )


@promises(
    "gradients reach the tokens that a token attends to, and no others",
    look=MASKING + r"|detach|no_grad|\.data|stop_gradient",
)
def gradient(subject: Subject) -> Outcome:
    tokens = subject.few_tokens
    inputs = subject.inputs(tokens)
    shape = subject.run(inputs, **subject.causal_options).shape
    random = np.random.default_rng(0)
    # sizes[row][i][token]: the gradient of an output row with respect to a token of input i
    sizes = []
    for row in range(tokens):
        weight = np.zeros(shape)
        weight[..., row, :] = random.normal(size=weight[..., row, :].shape)
        slopes = gradients(subject, inputs, weight, **subject.causal_options)
        sizes.append([np.abs(s).max(axis=-1).reshape((-1, tokens)).max(axis=0) for s in slopes])
    by_input = np.array(sizes).swapaxes(0, 1)
    visible = np.ones((tokens, tokens), bool)
    if subject.declared.always_causal or subject.causal_options:
        visible = np.tril(visible)
    may = must = visible[None]
    if subject.kind == "qkv":
        itself = np.eye(tokens, dtype=bool)
        may = np.array([itself, visible, visible])
        # A query with only one key has the weight 1, which does not depend on query or key.
        must = may & (visible.sum(axis=-1) > 1)[:, None] | np.array([~visible, ~visible, visible])
        must &= may
    largest = by_input.max(axis=(1, 2), keepdims=True) + 1e-300
    small = subject.noise * largest
    leak = float((np.where(may, 0, by_input) / largest).max())
    missing = int((must & ~(by_input > small)).sum())
    return verdict(
        leak <= subject.noise and not missing,
        f"the largest gradient of a token that must have none is {digits(leak)} times the largest "
        f"of all; {missing} of {int(must.sum())} other pairs have no gradient",
        "gradient 0 of tokens without influence, and not 0 of the others",
        "the gradient is lost: something is detached, masked, or computed without gradients"
        if missing
        else (None if visible.all() else _leak_if_any(subject))
        or "the gradient reaches masked tokens, although they do not change the output",
        "mask before the softmax, not by replacing the output; remove detach(), .data, no_grad",
    )


@promises(
    "queries do not depend on each other",
    "qkv",
    "self",
    applies=weights_alone,
    look=r"softmax|max\(|amax|sum\(|mean\(",
)
def rows(subject: Subject) -> Outcome:
    if subject.kind == "self":
        return _among_copies(subject)
    tokens = subject.few_tokens
    inputs = subject.inputs(tokens)
    base = subject.run(inputs)
    queries = inputs[0].copy()
    queries[..., -1, :] *= 3000.0
    other = subject.run([queries, *inputs[1:]])
    worst = gap(other[..., :-1, :], base[..., :-1, :])
    if subject.declared.order_free:
        worst = max(worst, _fewer_queries(subject, inputs, base))
    return verdict(
        worst <= subject.tolerance,
        f"changing the last query or removing queries changes other outputs by {digits(worst)}",
        "the output of a query does not depend on other queries",
        wrong_sums(subject) or "queries share a maximum, a mean or a sum over the query axis",
        "reduce over the keys only: softmax(dim=-1), amax(dim=-1, keepdim=True)",
    )


def _fewer_queries(subject: Subject, inputs: list[np.ndarray], base: np.ndarray) -> float:
    """Return how much the outputs of the first three queries change without the other queries.

    Returns 0 if the attention requires as many queries as keys.
    """
    try:
        part = subject.run([inputs[0][..., :3, :], *inputs[1:]])
    except Refused:
        return 0.0
    return gap(part, base[..., :3, :])


def _among_copies(subject: Subject) -> Outcome:
    """Measure the output of one token among n copies of another token.

    If rows sum to 1, it approaches the output of the copies alone as 1/n, otherwise it does not.
    """
    if subject.longest < 16:
        return not_applicable(f"the check needs 16 tokens, but it accepts only {subject.longest}")
    few_copies, many = (subject.longest - 1) // 4, subject.longest - 1
    ratios = []
    for seed in range(3):
        one, other = _two_tokens(subject, seed)
        alone = subject.run([other])[0, 0]
        near, far = (
            np.abs(subject.run([np.concatenate([one, *[other] * n], axis=1)])[0, 0] - alone).max()
            for n in (many, few_copies)
        )
        ratios.append(float(near / max(far, subject.noise)))
    ratio = min(ratios)  # the pair of tokens that attend to each other most
    return verdict(
        ratio < 0.5,
        f"from {few_copies} to {many} copies of another token, the distance to the output of the "
        f"copies alone is multiplied by {digits(ratio)}",
        "below 0.5 (the distance is proportional to 1 / copies)",
        "the softmax runs over the query axis: columns, not rows, sum to 1"
        if ratio > 0.8
        else "the weights of a query depend on other queries",
        "softmax(dim=-1): over the keys of one query",
    )


def _two_tokens(subject: Subject, seed: int) -> list[np.ndarray]:
    """Return two tokens, small enough that neither gets nearly all the weight."""
    pair = subject.inputs(2, batch=1, seed=seed)[0]
    for size in 10.0 ** np.arange(0, -4, -0.25):
        one, other = np.split(size * pair, 2, axis=1)
        ends = [subject.run([token])[0, 0] for token in (one, other)]
        together = subject.run([np.concatenate([one, other], axis=1)])[0]
        apart = np.abs(ends[0] - ends[1]).max()
        if np.abs(together - (ends[0] + ends[1]) / 2).max() < 0.15 * apart:
            break
    return [one, other]


@promises("batch rows do not depend on each other", look=r"view|reshape|max\(|softmax|mean\(")
def batch(subject: Subject) -> Outcome:
    inputs = subject.inputs(subject.few_tokens)
    base, worst = subject.run(inputs), 0.0
    for row in range(2):
        if subject.kind == "model":
            other = subject.changed(inputs, slice(None), rows=[row])
        else:
            other = [array.copy() for array in inputs]
            for array in other:
                array[row] *= 30.0
        worst = max(worst, gap(subject.run(other)[1 - row], base[1 - row]))
    return verdict(
        worst <= subject.tolerance,
        f"changing a batch row changes the other one by {digits(worst)}",
        "batch rows do not depend on each other",
        "batch rows are mixed: the axes are not (batch, tokens, ...), a reshape mixes the batch "
        "with heads or tokens, or a maximum, a mean or a softmax runs over the batch",
        "reduce over the keys only; keep the batch axis first in every reshape",
    )


@promises(
    "outputs do not depend on the length of the text",
    applies=can_be_causal,
    look=r"sqrt|\*\*|shape|size\(|log",
)
def prefix(subject: Subject) -> Outcome:
    length = subject.longest
    inputs = subject.inputs(length)
    out = subject.run(inputs, **subject.causal_options)
    worst, at = 0.0, length
    for tokens in (n for n in (1, 2, 8, 16) if n < length):
        part = subject.run(subject.cut(inputs, slice(tokens)), **subject.causal_options)
        distance = gap(part, out[..., :tokens, :])
        worst, at = max((worst, at), (distance, tokens))
    return verdict(
        worst <= subject.tolerance,
        f"without later tokens the first {at} of {length} outputs change by {digits(worst)}",
        "0: outputs do not depend on the length of the text",
        _leak_if_any(subject) or "the scale or a sum depends on the number of tokens",
        "mask before the softmax; scale by the width of a head, not by the number of tokens",
    )


@promises(
    "the order of keys and values does not matter",
    "qkv",
    "self",
    applies=order_free,
    look=r"view|reshape|transpose|permute|rearrange|arange|bias",
)
def order(subject: Subject) -> Outcome:
    tokens = subject.longest
    inputs = subject.inputs(tokens)
    shuffle = np.random.default_rng(1).permutation(tokens)
    out = subject.run(inputs)
    if subject.kind == "self":
        output, expected = subject.run(subject.cut(inputs, shuffle)), out[..., shuffle, :]
    else:
        queries, keys, values = inputs
        output = subject.run([queries, keys[..., shuffle, :], values[..., shuffle, :]])
        expected = out
    worst = gap(output, expected)
    mixed = "tokens and features are mixed: heads are split by a view or reshape without a "
    mixed += "transpose (or merged without transposing back)"
    return verdict(
        worst <= subject.tolerance,
        f"permuting {tokens} tokens changes the outputs by {digits(worst)}",
        "0: the order of keys and values does not matter",
        mixed
        if subject.kind == "self" or subject.declared.layout != "bhtd"
        else "the position of a key matters: positions that were not declared, or blocks of keys "
        "whose partial sums are not rescaled to one maximum",
        "x.view(batch, tokens, heads, dim).transpose(1, 2); or declare positions=True",
    )


@promises(
    "chunks with a cache give the outputs of the complete text",
    needs=("cache",),
    look=r"cache|past|offset|position|arange|" + MASKING,
)
def cache(subject: Subject) -> Outcome:
    tokens = subject.longest
    inputs = subject.inputs(tokens)
    expected = subject.run(inputs, **subject.causal_options)
    worst, at = 0.0, ""
    for cuts in (range(1, tokens), (tokens // 2,), (1, tokens - 1), (3,)):
        distance = gap(subject.chunks(inputs, [*cuts]), expected)
        if distance > worst:
            worst, at = distance, f"(cut at {cuts if len(cuts) < 4 else 'every token'})"
    return verdict(
        worst <= subject.tolerance,
        f"chunks with a cache change the outputs by {digits(worst)} {at}".strip(),
        "0: chunks with a cache give the outputs of the complete text",
        "the causal mask counts from the top left: with more keys than queries it must align the "
        "last query with the last key"
        if subject.kind == "qkv"
        else "positions or the mask do not continue after the cache, or the cache is wrong",
        "query_position = keys - queries + row; positions start at the cache's length",
    )


@promises(
    "heads do not depend on their order",
    "qkv",
    look=r"view|reshape|transpose|permute|rearrange|head",
)
def heads(subject: Subject) -> Outcome:
    inputs = subject.inputs(subject.few_tokens)
    count = subject.declared.heads
    if count == 1:
        return not_applicable("it has one head")
    # Grouped heads are reversed, because that keeps the groups together for any kind of grouping.
    order = np.roll(np.arange(count), 1) if subject.kv_heads == count else np.arange(count)[::-1]
    grouped = order if subject.kv_heads == count else np.arange(subject.kv_heads)[::-1]
    queries, keys, values = inputs
    moved = [queries[:, order], keys[:, grouped], values[:, grouped]]
    worst = gap(subject.run(moved), subject.run(inputs)[:, order])
    return verdict(
        worst <= subject.tolerance,
        f"permuting heads changes the outputs by {digits(worst)}",
        "0: heads do not depend on their order",
        "heads are mixed or reordered: merged without transposing back, or something differs "
        "between heads",
        "context.transpose(1, 2).reshape(batch, tokens, heads * dim)",
    )


@promises("each query head reads the right kv head", "qkv", look=r"repeat|expand|tile|head")
def groups(subject: Subject) -> Outcome:
    count, kv_heads = subject.declared.heads, subject.kv_heads
    if kv_heads == count:
        return not_applicable("kv_heads equals heads")
    inputs = subject.inputs(subject.few_tokens)
    base = subject.run(inputs)
    reads = {kind: np.zeros((count, kv_heads), bool) for kind in ("keys", "values")}
    for head in range(kv_heads):
        for which, kind in ((1, "keys"), (2, "values")):
            other = [array.copy() for array in inputs]
            other[which][:, head] = other[which][:, head, ::-1]
            change = np.abs(subject.run(other) - base).max(axis=(0, 2, 3))
            reads[kind][:, head] = change > subject.noise * np.abs(base).max()
    expected = np.arange(count)[:, None] // (count // kv_heads) == np.arange(kv_heads)
    tiled = np.arange(count)[:, None] % kv_heads == np.arange(kv_heads)
    wrong = next((k for k, r in reads.items() if not np.array_equal(r, expected)), "values")
    names = ["+".join(str(i) for i in np.flatnonzero(row)) or "none" for row in reads[wrong]]
    return verdict(
        all(np.array_equal(matrix, expected) for matrix in reads.values()),
        f"query heads 0 to {count - 1} read the {wrong} of the kv heads {', '.join(names)}",
        f"query head h reads kv head h // {count // kv_heads}",
        "the kv heads are tiled: query head h reads kv head h % kv_heads"
        if np.array_equal(reads[wrong], tiled)
        else "query heads read the wrong kv heads",
        "keys.repeat_interleave(heads // kv_heads, dim=1), not keys.repeat",
    )


CHECKS = (future, present, past, gradient, rows, batch, prefix, order, cache, heads, groups)
