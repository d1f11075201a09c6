"""Who sees whom: nothing from the future, all of the past, no row of another batch.

Each function is a check; what it promises stands in the table at the end. The leak test by
gradients is a habit of nanodo's; grouped heads: Ainslie et al. 2023.
"""

from __future__ import annotations

import numpy as np

from headway.check.findings import Outcome, not_applicable, verdict
from headway.check.properties.check import (
    ALL,
    Check,
    can_be_causal,
    few,
    floor,
    gap,
    influence,
    order_free,
    shown,
    weights_alone,
    wrong_sums,
)
from headway.check.subjects import Refused, Subject

UNDECLARED = "it is causal, and was not declared so"
LONG = 193  # no multiple of a tile; its half is inside one, whatever power of 2 the tile is
MASKING = r"mask|tril|triu|causal|-inf|infinity"


def future(subject: Subject) -> Outcome:
    tokens = few(subject)
    seen = influence(subject, tokens, **subject.causal)
    ahead = np.triu(seen, 1)
    row, column = np.unravel_index(ahead.argmax(), ahead.shape)
    worst = float(ahead.max())
    measured = f"none of {tokens} tokens changes an earlier output"
    if worst > floor(subject):
        measured = f"the output of token {row} changes by {shown(worst)} with token {column}"
    else:  # what a small text does not show: masks made tile by tile, or kept for a length
        inputs = subject.inputs(subject.longest)
        base = subject.run(inputs, **subject.causal)
        for token in range(tokens, subject.longest, 5):
            other = subject.run(subject.changed(inputs, [token]), **subject.causal)
            leak = gap(other[..., :token, :], base[..., :token, :])
            if leak > worst:
                worst = leak
                measured = f"earlier outputs change by {shown(worst)} with token {token}"
        worst = max(worst, long := _in_long_texts(subject))
        if long > floor(subject):
            measured = f"in a text of {LONG} tokens earlier outputs change by {shown(long)}"
    return verdict(
        worst <= floor(subject),
        measured,
        "no output changes with a later token",
        _leak(subject, seen),
        "put -inf where key > query before the softmax: "
        "scores.masked_fill(torch.triu(ones, diagonal=1).bool(), -inf)",
    )


def _in_long_texts(subject: Subject) -> float:
    """How much the first half of a long text changes with the rest; 0 if it takes none so long."""
    try:
        inputs = subject.inputs(LONG)
        base = subject.run(inputs, **subject.causal)
        other = subject.run(subject.changed(inputs, slice(LONG // 2, None)), **subject.causal)
    except Refused:
        return 0.0
    return gap(other[..., : LONG // 2, :], base[..., : LONG // 2, :])


def _leak(subject: Subject, seen: np.ndarray) -> str:
    """What kind of leak of the future this is."""
    sees, above = seen > floor(subject), np.triu(np.ones_like(seen, bool), 1)
    ahead, behind = sees & above, np.tril(sees, -1)
    sums = wrong_sums(subject)
    if sums is not None:
        return sums
    if not ahead.any():
        return "the future is seen in long texts only: a mask made tile by tile, or for one length"
    if not behind.any():
        return "the mask's meaning is reversed: it sees the future and not the past"
    if np.array_equal(ahead, above & ~np.triu(above, 2)):
        return "the mask is shifted by one: each token sees the next (the diagonal of triu or tril)"
    if not np.array_equal(ahead, above):
        return (
            "tokens and features are mixed: heads are split by a view or reshape without a "
            "transpose, or the mask has the wrong shape"
        )
    if seen[above].max() < 1e-2 * np.median(np.diag(seen)):
        return "a little of the future comes through: masked scores are not low enough"
    return (
        "no causal mask is in force, or it comes after the softmax, so that later tokens take part "
        "in the sum"
    )


def _seen_future(subject: Subject) -> str | None:
    """The leak of the future, if there is one, for checks that it fails too."""
    seen = influence(subject, few(subject), **subject.causal)
    return _leak(subject, seen) if np.triu(seen, 1).max() > floor(subject) else None


def present(subject: Subject) -> Outcome:
    seen = np.diag(influence(subject, few(subject), **subject.causal))
    return verdict(
        bool((seen > floor(subject)).all()),
        f"the output of token {int(seen.argmin())} changes by {shown(seen.min())} with that token",
        "every token sees itself",
        "the mask hides the present too: it keeps key < query instead of key <= query"
        if subject.kind != "model"
        else "the tokens are shifted inside the model: logits[t] does not know token t",
        "mask with triu(diagonal=1), not diagonal=0; shift labels in the loss, not tokens",
    )


def past(subject: Subject) -> Outcome:
    tokens = few(subject)
    seen = influence(subject, tokens, **subject.causal)
    causal = subject.always_causal or bool(subject.causal)
    wanted = np.tril(np.ones((tokens, tokens), bool), -1)
    if not causal:
        wanted = ~np.eye(tokens, dtype=bool)
    blind = wanted & (seen <= floor(subject))
    if not causal and np.array_equal(seen > floor(subject), np.tri(tokens, dtype=bool)):
        return verdict(
            False,
            "no token sees a later one",
            "what is not declared causal sees all",
            UNDECLARED,
            "declare causal=True (--causal)",
        )
    near = int((seen[-1] > floor(subject)).sum())
    wanted_window = np.tri(tokens, dtype=bool) & ~np.tri(tokens, k=-near, dtype=bool)
    row, column = np.unravel_index(blind.argmax(), blind.shape)
    return verdict(
        not blind.any(),
        f"{int(blind.sum())} of {int(wanted.sum())} pairs see nothing"
        + (f"; token {row} does not see token {column}" if blind.any() else ""),
        "every token sees all that it may see",
        f"the last token sees the last {near} only: a window that was not declared"
        if np.array_equal(seen > floor(subject), wanted_window)
        else "tokens are missing: a mask or a slice that hides too much, or heads split by a view "
        "or reshape without a transpose",
        "check the mask's diagonal and shape, and slices of keys and values",
    )


def gradient(subject: Subject) -> Outcome:
    tokens = few(subject)
    inputs = subject.inputs(tokens)
    shape = subject.at(inputs, subject.smooth(inputs), **subject.causal).shape
    random = np.random.default_rng(0)
    # sizes[i, row, token]: of the gradient of an output's row by a token of the i-th input
    sizes = []
    for row in range(tokens):
        weight = np.zeros(shape)
        weight[..., row, :] = random.normal(size=weight[..., row, :].shape)
        found = subject.gradients(inputs, weight, **subject.causal)
        sizes.append([np.abs(g).max(axis=-1).reshape((-1, tokens)).max(axis=0) for g in found])
    by_input = np.array(sizes).swapaxes(0, 1)
    sees = np.ones((tokens, tokens), bool)
    if subject.always_causal or subject.causal:
        sees = np.tril(sees)
    may = must = sees[None]
    if subject.kind == "qkv":
        itself = np.eye(tokens, dtype=bool)
        may = np.array([itself, sees, sees])
        # With one key the softmax is 1, whatever query and key are.
        must = may & (sees.sum(axis=-1) > 1)[:, None] | np.array([~sees, ~sees, sees])
        must &= may
    largest = by_input.max(axis=(1, 2), keepdims=True) + 1e-300
    small = floor(subject) * largest
    leak = float((np.where(may, 0, by_input) / largest).max())
    missing = int((must & ~(by_input > small)).sum())
    return verdict(
        leak <= floor(subject) and not missing,
        f"largest gradient into the future {shown(leak)} of all; {missing} of {int(must.sum())} "
        "pairs without gradient",
        "gradient 0 into the future, and not 0 into the present and the past",
        "the gradient is cut: something is detached, hidden, or computed without gradients"
        if missing
        else (None if sees.all() else _seen_future(subject))
        or "the gradient reaches what must not be seen, even if the output does not show it",
        "mask before the softmax, not by replacing the output; remove detach(), .data, no_grad",
    )


def rows(subject: Subject) -> Outcome:
    if subject.kind == "self":
        return _drowned(subject)
    tokens = few(subject)
    inputs = subject.inputs(tokens)
    base = subject.run(inputs)
    queries = inputs[0].copy()
    queries[..., -1, :] *= 3000.0
    other = subject.run([queries, *inputs[1:]])
    worst = gap(other[..., :-1, :], base[..., :-1, :])
    if subject.order_free:
        worst = max(worst, _fewer_queries(subject, inputs, base))
    return verdict(
        worst <= subject.tolerance,
        f"another last query, or fewer of them, change the other rows by {shown(worst)}",
        "the output of a query does not depend on other queries",
        wrong_sums(subject)
        or "queries share something: a maximum, a mean or a sum taken over the query axis",
        "reduce over the keys only: softmax(dim=-1), amax(dim=-1, keepdim=True)",
    )


def _fewer_queries(subject: Subject, inputs: list[np.ndarray], base: np.ndarray) -> float:
    """The change when only the first queries are asked; 0 if there must be as many as keys."""
    try:
        part = subject.run([inputs[0][..., :3, :], *inputs[1:]])
    except Refused:
        return 0.0
    return gap(part, base[..., :3, :])


def _drowned(subject: Subject) -> Outcome:
    """One token among n copies of another finds, as n grows, what the copies alone find, and
    comes nearer by 1/n: so it is when, and only when, a row's weights sum to 1."""
    if subject.longest < 16:
        return not_applicable("many copies of a token need a longer text")
    few_copies, many = (subject.longest - 1) // 4, subject.longest - 1
    ratios = []
    for seed in range(3):
        one, other = _moderate(subject, seed)
        alone = subject.run([other])[0, 0]
        near, far = (
            np.abs(subject.run([np.concatenate([one, *[other] * n], axis=1)])[0, 0] - alone).max()
            for n in (many, few_copies)
        )
        ratios.append(float(near / max(far, floor(subject))))
    ratio = min(ratios)  # of the pair in which the one asks most for the other
    return verdict(
        ratio < 0.5,
        f"from {few_copies} to {many} copies of another token the distance to what the copies find "
        f"alone goes down to {shown(ratio)} of itself",
        "below 0.5 (it goes down as one over the copies)",
        "the softmax runs over the query axis: columns, not rows, sum to 1"
        if ratio > 0.8
        else "the weights of a query depend on other queries",
        "softmax(dim=-1): over the keys of one query",
    )


def _moderate(subject: Subject, seed: int) -> list[np.ndarray]:
    """Two tokens, small enough that neither has nearly all weight when they are together."""
    pair = subject.inputs(2, batch=1, seed=seed)[0]
    for size in 10.0 ** np.arange(0, -4, -0.25):
        one, other = np.split(size * pair, 2, axis=1)
        ends = [subject.run([each])[0, 0] for each in (one, other)]
        together = subject.run([np.concatenate([one, other], axis=1)])[0]
        apart = np.abs(ends[0] - ends[1]).max()
        if np.abs(together - (ends[0] + ends[1]) / 2).max() < 0.15 * apart:
            break
    return [one, other]


def batch(subject: Subject) -> Outcome:
    inputs = subject.inputs(few(subject))
    base, worst = subject.run(inputs), 0.0
    for row in range(2):
        if subject.kind == "model":
            other = subject.changed(inputs, slice(None), rows=[row])
        else:
            other = [each.copy() for each in inputs]
            for each in other:
                each[row] *= 30.0
        worst = max(worst, gap(subject.run(other)[1 - row], base[1 - row]))
    return verdict(
        worst <= subject.tolerance,
        f"another batch row changes the one beside it by {shown(worst)}",
        "batch rows do not know each other",
        "batch rows are mixed: the axes are not (batch, tokens, ...), a reshape puts the batch "
        "among heads or tokens, or a maximum, a mean or a softmax runs over it",
        "reduce over the keys only; keep the batch axis first in every reshape",
    )


def prefix(subject: Subject) -> Outcome:
    whole = subject.longest
    inputs = subject.inputs(whole)
    out = subject.run(inputs, **subject.causal)
    worst, at = 0.0, whole
    for tokens in (1, 2, 8, 16)[: 2 if whole < 9 else 3 if whole < 17 else 4]:
        part = subject.run(subject.cut(inputs, slice(tokens)), **subject.causal)
        distance = gap(part, out[..., :tokens, :])
        worst, at = max((worst, at), (distance, tokens))
    return verdict(
        worst <= subject.tolerance,
        f"the first {at} of {whole} tokens alone give outputs that differ by {shown(worst)}",
        "the first tokens of a text give the same, however long it is",
        _seen_future(subject) or "the number of tokens takes part: in the scale, or in a sum",
        "mask before the softmax; scale by the width of a head, never by the number of tokens",
    )


def order(subject: Subject) -> Outcome:
    tokens = subject.longest
    inputs = subject.inputs(tokens)
    shuffle = np.random.default_rng(1).permutation(tokens)
    out = subject.run(inputs)
    if subject.kind == "self":
        found, wanted = subject.run(subject.cut(inputs, shuffle)), out[..., shuffle, :]
    else:
        queries, keys, values = inputs
        found = subject.run([queries, keys[..., shuffle, :], values[..., shuffle, :]])
        wanted = out
    worst = gap(found, wanted)
    mixed = "tokens and features are mixed: heads are split by a view or reshape without a "
    mixed += "transpose (or merged without transposing back)"
    return verdict(
        worst <= subject.tolerance,
        f"{tokens} tokens in another order change the outputs by {shown(worst)}",
        "attention is of a set: the order of keys and values changes nothing",
        mixed
        if subject.kind == "self" or subject.declared.layout != "bhtd"
        else "a key's place matters: positions that were not declared, or blocks of keys whose "
        "partial sums are not brought to one maximum",
        "x.view(batch, tokens, heads, dim).transpose(1, 2); declare positions=True if it has them",
    )


def cache(subject: Subject) -> Outcome:
    tokens = subject.longest
    inputs = subject.inputs(tokens)
    whole = subject.run(inputs, **subject.causal)
    worst, at = 0.0, ""
    for cuts in (range(1, tokens), (tokens // 2,), (1, tokens - 1), (3,)):
        distance = gap(subject.chunks(inputs, [*cuts]), whole)
        if distance > worst:
            worst, at = distance, f"cut at {cuts if len(cuts) < 4 else 'every token'}"
    return verdict(
        worst <= subject.tolerance,
        f"in chunks with a cache the outputs differ by {shown(worst)} {at}".strip(),
        "any chunks with a cache give what the whole text gives",
        "the causal mask counts from the top left: with more keys than queries the last query "
        "must meet the last key"
        if subject.kind == "qkv"
        else "positions or the mask do not go on from the cache, or the cache is not the past",
        "query_position = keys - queries + row; positions start at the cache's length",
    )


def heads(subject: Subject) -> Outcome:
    inputs = subject.inputs(few(subject))
    count = subject.declared.heads
    if count == 1:
        return not_applicable("one head alone has no order")
    # Grouped heads are reversed: an order that every way of grouping keeps.
    turned = np.roll(np.arange(count), 1) if subject.kv_heads == count else np.arange(count)[::-1]
    grouped = turned if subject.kv_heads == count else np.arange(subject.kv_heads)[::-1]
    queries, keys, values = inputs
    moved = [queries[:, turned], keys[:, grouped], values[:, grouped]]
    worst = gap(subject.run(moved), subject.run(inputs)[:, turned])
    return verdict(
        worst <= subject.tolerance,
        f"heads in another order change the outputs by {shown(worst)}",
        "heads do not know each other's number",
        "heads are mixed, or leave in another order than they came: merged without transposing "
        "back, or something differs from head to head",
        "context.transpose(1, 2).reshape(batch, tokens, heads * dim)",
    )


def groups(subject: Subject) -> Outcome:
    count, kv_heads = subject.declared.heads, subject.kv_heads
    if kv_heads == count:
        return not_applicable("as many heads of keys and values as of queries")
    inputs = subject.inputs(few(subject))
    base = subject.run(inputs)
    reads = {kind: np.zeros((count, kv_heads), bool) for kind in ("keys", "values")}
    for head in range(kv_heads):
        for which, kind in ((1, "keys"), (2, "values")):
            other = [each.copy() for each in inputs]
            other[which][:, head] = other[which][:, head, ::-1]
            change = np.abs(subject.run(other) - base).max(axis=(0, 2, 3))
            reads[kind][:, head] = change > floor(subject) * np.abs(base).max()
    wanted = np.arange(count)[:, None] // (count // kv_heads) == np.arange(kv_heads)
    tiled = np.arange(count)[:, None] % kv_heads == np.arange(kv_heads)
    wrong = next((k for k, r in reads.items() if not np.array_equal(r, wanted)), "values")
    said = ["+".join(str(i) for i in np.flatnonzero(row)) or "none" for row in reads[wrong]]
    return verdict(
        all(np.array_equal(each, wanted) for each in reads.values()),
        f"query heads 0 to {count - 1} read the {wrong} of the kv heads {', '.join(said)}",
        f"query head h reads kv head h // {count // kv_heads}",
        "the kv heads are tiled: query head h reads kv head h % kv_heads"
        if np.array_equal(reads[wrong], tiled)
        else "query heads read kv heads that are not theirs",
        "keys.repeat_interleave(heads // kv_heads, dim=1), not keys.repeat",
    )


CHECKS = {
    "future": Check("no token sees a later one", future, ALL, applies=can_be_causal, look=MASKING),
    "present": Check(
        "every token sees itself",
        present,
        ALL,
        applies=lambda s: (
            "a residual path shows it anyway"
            if s.declared.block and s.kind == "self"
            else can_be_causal(s)
        ),
        look=MASKING,
    ),
    "past": Check("every token sees all that it may see", past, ALL, look=MASKING),
    "gradient": Check(
        "gradients flow to all that a token sees, and to nothing else",
        gradient,
        ALL,
        look=MASKING + r"|detach|no_grad|\.data|stop_gradient",
    ),
    "rows": Check(
        "queries do not know each other",
        rows,
        ("qkv", "self"),
        applies=weights_alone,
        look=r"softmax|max\(|amax|sum\(|mean\(",
    ),
    "batch": Check(
        "batch rows do not know each other", batch, ALL, look=r"view|reshape|max\(|softmax|mean\("
    ),
    "prefix": Check(
        "a text's beginning gives the same, however long the text",
        prefix,
        ALL,
        applies=can_be_causal,
        look=r"sqrt|\*\*|shape|size\(|log",
    ),
    "order": Check(
        "keys and values are a set",
        order,
        ("qkv", "self"),
        applies=order_free,
        look=r"view|reshape|transpose|permute|rearrange|arange|bias",
    ),
    "cache": Check(
        "chunks with a cache give what the whole text gives",
        cache,
        ALL,
        needs=("cache",),
        look=r"cache|past|offset|position|arange|" + MASKING,
    ),
    "heads": Check(
        "heads do not know each other's number",
        heads,
        ("qkv",),
        look=r"view|reshape|transpose|permute|rearrange|head",
    ),
    "groups": Check(
        "each query head reads the kv head that is its own",
        groups,
        ("qkv",),
        look=r"repeat|expand|tile|head",
    ),
}
