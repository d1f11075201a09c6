"""Checks of which tokens influence an output: all earlier ones, no later one, no other batch row.

The test of leaks by gradients comes from nanodo; grouped heads: Ainslie et al. 2023.
"""

import numpy as np

from headway.check.comparison import Comparison
from headway.check.derivatives import gradients
from headway.check.errors import Refused
from headway.check.findings import Outcome, not_applicable, verdict
from headway.check.libraries import undisturbed
from headway.check.properties.check import (
    can_be_causal,
    digits,
    gap,
    influence,
    must_see,
    order_of_earlier,
    promises,
    unless,
    visible,
    weights_alone,
)
from headway.check.subject import Subject

UNDECLARED = "it is causal, but was not declared causal"
TRAINING = (
    "while training (after model.train()) tokens depend on later ones, in evaluation they do "
)
TRAINING += "not: the causal mask is left out in training"
LONG = 193  # neither 193 nor 193 // 2 is a multiple of a usual tile size (a power of 2)
MASKING = r"mask|tril|triu|causal|-inf|infinity"


@promises("no token depends on a later one", applies=can_be_causal, look=MASKING)
def future(subject: Subject) -> Outcome:
    tokens = subject.few_tokens
    changes = influence(subject, tokens, **subject.causal_options)
    ahead = np.where(visible(subject, tokens), 0, np.triu(changes, 1))
    row, column = np.unravel_index(ahead.argmax(), ahead.shape)
    worst = float(ahead.max())
    measured = f"none of {tokens} tokens changes an earlier output"
    if worst > subject.noise:
        measured = f"the output of token {row} changes by {digits(worst)} with token {column}"
    else:  # masks that are computed by tiles, or cached for one length, leak in longer texts only
        inputs = subject.inputs(subject.longest)
        base = subject.run(inputs, **subject.causal_options)
        start = max(tokens, subject.declared.prefix or 0)
        for token in range(start, subject.longest, 5) if subject.declared.pattern is None else ():
            other = subject.run(subject.changed(inputs, [token]), **subject.causal_options)
            leak = gap(other[..., :token, :], base[..., :token, :])
            if leak > worst:
                worst = leak
                measured = f"earlier outputs change by {digits(worst)} with token {token}"
        long = 0.0 if subject.declared.pattern else _in_long_texts(subject)
        worst = max(worst, long)
        if long > subject.noise:
            measured = f"in a text of {LONG} tokens earlier outputs change by {digits(long)}"
    while_training = 0.0 if worst > subject.noise else _while_training(subject)
    if while_training > subject.noise:
        return Outcome(
            "fail",
            f"while training earlier outputs change by {digits(while_training)}",
            "no output changes with a later token",
            TRAINING,
            "the same mask in training and in evaluation",
            proven=True,
        )
    return verdict(
        worst <= subject.noise,
        measured,
        "no output changes with a later token",
        _leak(subject, changes),
        "set scores with key > query to -inf before the softmax: "
        "scores.masked_fill(torch.triu(ones, diagonal=1).bool(), -inf)",
    )


def _while_training(subject: Subject) -> float:
    """Return how much earlier outputs change with the last token while a module is training.

    The same random numbers are drawn in both calls.
    """
    if subject.module is None or subject.declared.prefix or subject.declared.pattern:
        return 0.0
    inputs = subject.inputs(subject.few_tokens)
    outputs = []
    for arrays in (inputs, inputs, subject.changed(inputs, [-1])):
        with undisturbed(subject.library):
            outputs.append(subject.run(arrays, train=True, **subject.causal_options))
    first, again, other = outputs
    if not np.array_equal(first, again):  # it has random numbers of its own
        return 0.0
    return gap(other[..., :-1, :], first[..., :-1, :])


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
    """Describe the kind of leak by what is seen from outside; several causes are possible."""
    seen, above = changes > subject.noise, np.triu(np.ones_like(changes, bool), 1)
    ahead, behind = seen & above, np.tril(seen, -1)
    if not ahead.any():
        return "only long texts leak: check masks that are computed by tiles or for one length"
    if not behind.any():
        return (
            "tokens depend on later tokens, not on earlier ones: the meaning of the causal mask "
            "is reversed"
        )
    if np.array_equal(ahead, above & ~np.triu(above, 2)):
        return (
            "each token depends on the next one: the causal mask is shifted by one (see "
            "diagonal=), tokens are shifted in the wrong direction, or a convolution is padded on "
            "both sides"
        )
    if not np.array_equal(ahead, above):
        return (
            "some tokens depend on some later ones: a mask of the wrong shape, or axes that are "
            "mixed by a view or reshape"
        )
    if changes[above].max() < 1e-2 * np.median(np.diag(changes)):
        return "later tokens have a small influence: masked scores are not low enough"
    if subject.memory.get("comparison") == Comparison():  # no known fault gives these outputs
        return (
            "later tokens have an influence, but by none of the known faults of masks, of the "
            "softmax or of heads, which give other outputs: for example a mask that leaves out a "
            "part of the tokens (a block, a chunk), a convolution or a mean over the tokens in the "
            "values, or two faults at once"
        )
    return (
        "every token depends on all later ones: there is no causal mask, it comes after the "
        "softmax, the softmax runs over another axis, or a norm or mean runs over the tokens"
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
    tokens, layers, width = subject.few_tokens, subject.declared.layers, subject.declared.window
    if subject.kind == "model" and layers and width:  # farther than windows of one more reach
        tokens = min(subject.longest, max(tokens, layers * width + 2))
    changes = influence(subject, tokens, **subject.causal_options)
    causal = subject.declared.always_causal or bool(subject.causal_options)
    seen, may = changes > subject.noise, visible(subject, tokens)
    itself = np.eye(tokens, dtype=bool)
    missing = must_see(subject, tokens) & ~seen & ~itself
    extra = seen & ~may & ~itself & (np.tri(tokens, dtype=bool) if causal else True)
    if not causal and may.all() and np.array_equal(seen | itself, np.tri(tokens, dtype=bool)):
        return verdict(
            False,
            "no token attends to a later one",
            "without causal=True every token attends to all tokens",
            UNDECLARED,
            "declare causal=True (--causal)",
        )
    near = int(seen[-1].sum())
    as_window = np.tri(tokens, dtype=bool) & ~np.tri(tokens, k=-near, dtype=bool)
    row, column = np.unravel_index((missing | extra).argmax(), missing.shape)
    return verdict(
        not (missing | extra).any(),
        f"{int(missing.sum())} of {int((may & ~itself).sum())} pairs of tokens have no influence"
        + (f"; token {row} does not depend on token {column}" if missing.any() else "")
        + (f"; token {row} depends on token {column}, which is hidden" if extra.any() else ""),
        "every token depends on all tokens that it may attend to, and on no others",
        _wrong_reach(near, tokens, layers, width)
        if subject.kind == "model" and layers and width and np.array_equal(seen, as_window)
        else f"the last token depends on the last {near} only: a window that was not declared (if "
        f"it is intended: window={near})"
        if np.array_equal(seen, as_window)
        else "tokens are missing: a mask or a slice hides too much"
        if missing.any()
        else "the declared window, prefix or pattern is another one",
        "check the mask's diagonal and shape, and slices of keys and values",
    )


def _wrong_reach(near: int, tokens: int, layers: int, width: int) -> str:
    """Describe a model with a window whose last token depends on this many tokens."""
    if near == tokens:
        return (
            f"in a text of {tokens} tokens the last one depends on all: the window of {width} is "
            f"wider, or is not applied, at least in one of the {layers} layers"
        )
    each, rest = divmod(near - 1, layers)
    fault = f"the last token depends on {near} tokens, not {layers * (width - 1) + 1}, "
    if rest:
        return fault + f"through {layers} layers: their windows differ, or are not all {width}"
    fault += f"as if the window of each of the {layers} layers were {each + 1}, not {width}"
    return fault + (": < and <= are mixed up" if abs(each + 1 - width) == 1 else "")


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
    allowed = visible(subject, tokens)
    may, must = allowed[None], must_see(subject, tokens)[None]
    if subject.kind == "qkv":
        itself = np.eye(tokens, dtype=bool)
        may = np.array([itself, allowed, allowed])
        # A query with only one key has the weight 1, which does not depend on query or key.
        several = (allowed.sum(axis=-1) > 1)[:, None]
        must = may & several | np.array([~allowed, ~allowed, allowed])
        must &= may
    if subject.declared.normalizer == "other":  # for example sparsemax: weights may be 0
        must = np.zeros_like(may)
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
        else (None if allowed.all() else _leak_if_any(subject))
        or "the gradient reaches masked tokens, although they do not change the output",
        "mask before the softmax, not by replacing the output; remove detach(), .data, no_grad",
    )


@promises(
    "queries do not depend on each other",
    "qkv",
    "self",
    applies=unless("sinks", "gate", "normalizer", also=weights_alone),
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
        "queries share a maximum, a mean or a sum over the query axis, such as a softmax over it",
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
        "the weights of a query depend on other queries (a softmax over another axis, axes that "
        "are mixed), or its output depends on more than the weights (if it has a gate, declare "
        "gate=True)",
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
    moved = gap(subject.run([array[::-1] for array in inputs]), base[::-1])
    return verdict(
        max(worst, moved) <= subject.tolerance,
        f"changing a batch row changes the other one by {digits(worst)}; exchanging the rows "
        f"changes their outputs by {digits(moved)}",
        "batch rows do not depend on each other, nor on their order",
        "the output of a row depends on its place in the batch: for example positions that are "
        "counted along the batch axis"
        if worst <= subject.tolerance
        else "batch rows are mixed: the axes are not (batch, tokens, ...), a reshape mixes the "
        "batch with heads or tokens, or a maximum, a mean or another statistic is taken over the "
        "batch",
        "reduce over the keys only; keep the batch axis first in every reshape",
    )


@promises(
    "outputs do not depend on the length of the text",
    applies=unless("prefix", "pattern", also=can_be_causal),
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
        _leak_if_any(subject)
        or "something depends on the length of the text: positions that do not count from the "
        "first token, the scale, or a sum over the tokens",
        "mask before the softmax; scale by the width of a head, not by the number of tokens",
    )


@promises(
    "the order of keys and values does not matter",
    "qkv",
    "self",
    applies=order_of_earlier,
    look=r"view|reshape|transpose|permute|rearrange|arange|bias",
)
def order(subject: Subject) -> Outcome:
    tokens = subject.longest
    inputs = subject.inputs(tokens)
    shuffle = np.random.default_rng(1).permutation(tokens)
    out = subject.run(inputs, **subject.causal_options)
    if not subject.declared.order_free or subject.causal_options:  # the last query sees all keys
        shuffle = np.append(np.random.default_rng(1).permutation(tokens - 1), tokens - 1)
        moved = [inputs[0], *subject.cut(inputs[1:], shuffle)]
        moved = moved if subject.kind == "qkv" else subject.cut(inputs, shuffle)
        output = subject.run(moved, **subject.causal_options)[..., -1, :]
        expected = out[..., -1, :]
    elif subject.kind == "self":
        output, expected = subject.run(subject.cut(inputs, shuffle)), out[..., shuffle, :]
    else:
        queries, keys, values = inputs
        output = subject.run([queries, keys[..., shuffle, :], values[..., shuffle, :]])
        expected = out
    worst = gap(output, expected)
    mixed = (
        "the position of a token matters: positions that were not declared (positions=True), or "
    )
    mixed += "axes that are mixed by a view or reshape"
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
    applies=unless("prefix", "pattern"),
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
        _fault_of_cache(subject),
        "query_position = keys - queries + row; positions start at the cache's length",
    )


def _fault_of_cache(subject: Subject) -> str:
    """Describe which tokens have another influence if they come in chunks than in a whole text."""
    # Several layers with a window reach further than one.
    tokens = min(16, subject.longest) if subject.declared.window else subject.few_tokens
    expected = influence(subject, tokens, **subject.causal_options) > subject.noise
    earlier = np.tri(tokens, k=-1, dtype=bool) & expected
    steps = _influence_in_chunks(subject, tokens, [*range(1, tokens)])
    chunk = _influence_in_chunks(subject, tokens, [2])
    if not (steps & earlier).any():
        return (
            "the tokens in the cache have no influence: the cache is replaced instead of "
            "appended to, or is not used"
        )
    if (chunk & ~expected & ~np.tri(tokens, dtype=bool)).any():
        return (
            "tokens of a chunk depend on later ones: the causal mask is left out, or is wrong, if "
            "there is a cache"
        )
    if not (steps & earlier)[:, 1:].any():
        return (
            "a step after a cache depends on the first token only: the causal mask counts from the "
            "top left; with more keys than queries it must align the last query with the last key"
        )
    if (steps & ~expected).any():
        return (
            "a step after a cache depends on tokens that are hidden: the window or mask is lost "
            "in a step of one token (decode)"
        )
    missing = earlier & ~steps
    if missing.any() and all(
        not seen[: int(np.flatnonzero(row).max()) + 1].any()
        for row, seen in zip(missing, steps, strict=True)
        if row.any()
    ):
        return (
            "a whole text reaches further back than steps with a cache: the window of the mask and "
            "the size of the cache differ (one of them is missing, or off by one), or old keys are "
            "lost in the cache"
        )
    lost = [int(token) for token in np.flatnonzero((earlier & ~(steps & chunk)).any(axis=0))]
    if lost:
        return (
            f"after a cache some tokens have no influence (for example token {lost[0]}): the mask "
            "is not aligned with the cache (the last query has the position of the last key), or "
            "keys or values in the cache are lost"
        )
    return (
        "the right tokens have an influence, but with other numbers: positions do not continue "
        "after the cache (they start at 0 again), keys or values in the cache are wrong or belong "
        "to another batch row, or the scale or a norm depends on the length"
    )


def _influence_in_chunks(subject: Subject, tokens: int, cuts: list[int]) -> np.ndarray:
    """Return whether each token's output (row) depends on each token (column), in chunks."""
    inputs = subject.inputs(tokens)
    base = subject.chunks(inputs, cuts)
    columns = []
    for token in range(tokens):
        change = np.abs(subject.chunks(subject.changed(inputs, [token]), cuts) - base)
        columns.append((change.max(axis=-1).reshape((-1, tokens)) > subject.noise).any(axis=0))
    return np.stack(columns, axis=-1)


@promises(
    "each head reads its own queries, keys and values, or those of its group",
    "qkv",
    look=r"view|reshape|transpose|permute|rearrange|repeat|expand|tile|head",
)
def groups(subject: Subject) -> Outcome:
    count, kv_heads = subject.declared.heads, subject.kv_heads
    if count == 1:
        return not_applicable("it has one head")
    inputs = subject.inputs(subject.few_tokens)
    base = subject.run(inputs)
    reads = {}
    for which, (name, heads) in enumerate(
        (("queries", count), ("keys", kv_heads), ("values", kv_heads))
    ):
        reads[name] = np.zeros((count, heads), bool)
        for head in range(heads):
            other = [array.copy() for array in inputs]
            other[which][:, head] = other[which][:, head, ::-1]
            change = np.abs(subject.run(other) - base).max(axis=(0, 2, 3))
            reads[name][:, head] = change > subject.noise * np.abs(base).max()
    expected = {
        name: np.arange(count)[:, None] // (count // matrix.shape[1]) == np.arange(matrix.shape[1])
        for name, matrix in reads.items()
    }
    right = {name: np.array_equal(matrix, expected[name]) for name, matrix in reads.items()}
    wrong = next((name for name in ("keys", "values", "queries") if not right[name]), "values")
    names = ["+".join(str(i) for i in np.flatnonzero(row)) or "none" for row in reads[wrong]]
    tiled = np.arange(count)[:, None] % kv_heads == np.arange(kv_heads)
    return verdict(
        all(right.values()),
        f"heads 0 to {count - 1} read the {wrong} of the heads {', '.join(names)}",
        f"head h reads the keys and values of head h // {count // kv_heads}"
        if kv_heads != count
        else "head h reads those of head h",
        "the kv heads are tiled: query head h reads kv head h % kv_heads"
        if wrong != "queries" and kv_heads != count and np.array_equal(reads[wrong], tiled)
        else "query heads read the wrong kv heads"
        if kv_heads != count
        else "heads are mixed or reordered: for example split or merged without a transpose",
        "keys.repeat_interleave(heads // kv_heads, dim=1), not keys.repeat; heads split and merged "
        "with a transpose",
    )


CHECKS = (future, present, past, gradient, rows, batch, prefix, order, cache, groups)
