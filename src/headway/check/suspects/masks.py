"""Faults of the causal mask, of the option `mask` and of the window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from headway.check.suspects.steps import Array, Call, Step, Suspects, remove, unchanged

MASK = r"mask|tril|triu|causal|-inf|infinity"


def of_causal() -> Suspects:
    """Return faults of the causal mask."""
    found = Suspects("scores.masked_fill(key > query, -inf) before the softmax", MASK)

    def shifted(by: int) -> Step:
        def structure(call: Call) -> Array:
            allowed, distance = call.structure(), call.distance()
            return np.asarray(allowed | (distance == -1) if by > 0 else allowed & (distance != 0))

        return structure

    def of_some(axis: int) -> Step:
        """Return the mask in the first batch row or head only."""

        def structure(call: Call) -> Array:
            allowed = call.structure()
            count = call.heads if axis == 1 else 2
            others = np.arange(count) > 0
            return allowed | others.reshape((1, -1, 1, 1) if axis else (-1, 1, 1, 1))

        return structure

    found.add(
        "there is no causal mask: every token attends to later tokens, the future",
        structure=lambda call: np.ones_like(call.structure()),
    )
    found.add(
        "the causal mask is shifted by one: each token attends to the next one (see diagonal=)",
        structure=shifted(1),
        fix="torch.triu(ones, diagonal=1) marks what to hide; tril(diagonal=0) what to keep",
    )
    found.add(
        "the causal mask is shifted by one: it also hides the token itself (see diagonal=)",
        structure=shifted(-1),
        fix="torch.triu(ones, diagonal=1) marks what to hide, not diagonal=0",
    )
    reversed_mask = "the meaning of the causal mask is reversed: a token attends to {}, not to "
    reversed_mask += "earlier ones (tril and triu are exchanged, or True and False)"
    found.add(reversed_mask.format("later tokens only"), structure=lambda call: ~call.structure())
    found.add(
        reversed_mask.format("itself and later tokens"), structure=lambda call: ~shifted(-1)(call)
    )
    _add_misapplied(found, "causal mask", "later tokens", "hide_structure", "drop_structure")
    found.add("the causal mask is applied in the first head only", structure=of_some(1))
    found.add("the causal mask is applied in the first batch row only", structure=of_some(0))
    found.add(
        "the causal mask counts from the top left: with more keys than queries it must align the "
        "last query with the last key",
        structure=lambda call: (
            np.indices(call.shape)[0] >= np.indices(call.shape)[1]
            if call.causal
            else call.structure()
        ),
        fix="query_position = keys - queries + row",
    )
    found.add(
        "several tokens after a cache see later ones: the causal mask is left out if there are "
        "more keys than queries",
        structure=lambda call: call.structure() | (call.shape[1] > call.shape[0]),
        fix="query_position = keys - queries + row; mask in each chunk",
    )
    return found


def _add_misapplied(found: Suspects, mask: str, hidden: str, hide: str, drop: str) -> None:
    """Add wrong ways to apply a mask. hide, drop: the steps before and after the softmax."""
    after: dict[str, Any] = {hide: unchanged, drop: remove}
    found.add(
        f"the {mask} comes after the softmax, and the rows are not normalized again: weights are "
        f"removed, and {hidden} still are part of the sum, so that the others do not sum to 1",
        **after,
    )
    low = "which is not low enough"
    steps: tuple[tuple[str, Step], ...] = (
        (f"the {mask} multiplies the scores: the scores of {hidden} are 0 instead of -inf, {low}",
         lambda scores, allowed: np.where(allowed, scores, 0.0)),
        (f"the {mask} is added as 0 and 1 to the scores (allowed keys get 1) instead of -inf and "
         f"0, {low}",
         lambda scores, allowed: scores + allowed),
        (f"the {mask} is added as 0 and 1 to the scores ({hidden} get 1) instead of 0 and -inf, "
         f"{low}",
         lambda scores, allowed: scores + ~allowed),
        (f"the sign of the {mask} is wrong: +inf instead of -inf, which gives NaN",
         lambda scores, allowed: np.where(allowed, scores, np.inf)),
    )  # fmt: skip
    for diagnosis, step in steps:
        changed: dict[str, Any] = {hide: step}
        found.add(diagnosis, **changed)


def of_option() -> Suspects:
    """Return faults of the option `mask`."""
    found = Suspects("scores.masked_fill(~attend[:, None, None, :], -inf) before the softmax", MASK)

    def given(change: Callable[[Array], Array | None]) -> Step:
        return lambda call: None if call.given is None else change(call.given)

    reversed_mask = "the mask's meaning is reversed: it hides the keys that it should show (True "
    reversed_mask += "means 'attend' in scaled_dot_product_attention, but 'masked' in "
    reversed_mask += "nn.MultiheadAttention)"
    found.add("the mask is not applied: masked keys are read", given=given(lambda mask: None))
    found.add(reversed_mask, given=given(lambda mask: ~mask))
    found.add(
        "the first query's row of the mask is used for all queries: every query gets the mask of "
        "query 0",
        given=given(lambda mask: mask[:, :, :1]),
    )
    found.add(
        "the last query's row of the mask is used for all queries: every query gets the mask of "
        "the last one",
        given=given(lambda mask: mask[:, :, -1:]),
    )
    found.add(
        "the mask lies on the axis of the queries instead of the keys: it hides rows, not columns",
        given=given(lambda mask: mask.swapaxes(-1, -2)),
        fix="mask[:, None, None, :], not mask[:, None, :, None]",
    )
    found.add(
        "the mask of another batch row is used (the first row's mask for all)",
        given=given(lambda mask: mask[:1]),
    )
    found.add(
        "the mask of another batch row is used (they are shifted)",
        given=given(lambda mask: np.roll(mask, 1, 0)),
    )
    found.add(
        "the mask of another batch row is used in some heads: repeat instead of "
        "repeat_interleave for batch * heads rows",
        given=lambda call: (
            None
            if call.given is None
            else call.given[:, 0][
                np.arange(len(call.given) * call.heads) % len(call.given)
            ].reshape((len(call.given), call.heads, *call.given.shape[2:]))
        ),
        fix="mask.repeat_interleave(heads, dim=0)",
    )
    of_all = "one mask is made of all batch rows (a key is shown if {} of them show it)"
    found.add(
        of_all.format("all"), given=given(lambda mask: np.asarray(mask.all(axis=0, keepdims=True)))
    )
    found.add(
        of_all.format("any"), given=given(lambda mask: np.asarray(mask.any(axis=0, keepdims=True)))
    )
    found.add(
        "the mask is applied in the first head only",
        given=lambda call: (
            None if call.given is None else call.given | (np.arange(call.heads)[:, None, None] > 0)
        ),
    )
    found.add(
        "the mask replaces the causal one: with a mask, tokens attend to the future (for example, "
        "is_causal is ignored if a mask is given)",
        structure=lambda call: call.structure() | (call.given is not None),
        fix="allowed = mask & causal_mask, once, before the softmax",
    )
    found.add(
        "causal=True has no effect unless a mask is given: without a mask, tokens attend to the "
        "future, later tokens",
        structure=lambda call: call.structure() | (call.causal and call.given is None),
        fix="apply the causal mask in both cases",
    )
    found.add(
        "the window is lost if a mask is given",
        structure=lambda call: call.structure(window=call.window if call.given is None else None),
        fix="allowed = mask & window & causal_mask, once, before the softmax",
    )
    found.add(
        "causal=True replaces the mask: masked keys are read",
        given=lambda call: None if call.causal else call.given,
        fix="allowed = mask & causal_mask, once, before the softmax",
    )
    found.add(
        "the mask and the causal mask are combined with or: a key is read if one of them allows it",
        structure=lambda call: call.structure() | (False if call.given is None else call.given),
        given=lambda call: None if call.given is None else call.given | call.structure(),
        fix="allowed = mask & causal_mask",
    )
    _add_misapplied(found, "mask", "masked keys", "hide_given", "drop_given")
    found.add(
        "masked keys and values are set to 0 instead of masked: their scores are 0 instead of "
        "-inf, so that they get weights",
        hide_given=lambda scores, allowed: np.where(allowed, scores, 0.0),
        drop_given=remove,
    )
    return found


def of_window() -> Suspects:
    """Return faults of the option `window`."""
    fix = "allowed = (key <= query) & (query - key < window)"
    found = Suspects(fix, "window")

    def windowed(change: Callable[[Call, int], Array]) -> Step:
        return lambda call: call.structure() if call.window is None else change(call, call.window)

    def top_left(call: Call, width: int) -> Array:
        distance = call.distance() - (call.shape[1] - call.shape[0])
        return np.asarray((distance >= 0) & (distance < width))

    kinds: tuple[tuple[str, Callable[[Call, int], Array]], ...] = (
        ("the window is one key too wide: < and <= are mixed up",
         lambda call, width: call.structure(window=width + 1)),
        ("the window is one key too narrow: < and <= are mixed up",
         lambda call, width: call.structure(window=width - 1)),
        ("the window has no effect", lambda call, width: call.structure(window=None)),
        ("the window includes later keys: it reaches to both sides of the query",
         lambda call, width: np.abs(call.distance()) < width),
        ("the window includes later keys: only old keys are hidden, there is no causal mask",
         lambda call, width: call.distance() < width),
        ("the window is lost in a step of one token after a cache (decode): the query sees all "
         "keys of the cache",
         lambda call, width: call.structure(window=width if call.shape[0] > 1 else None)),
        ("the window counts from the top left: with a cache it must align the last query with the "
         "last key",
         top_left),
    )  # fmt: skip
    for name, change in kinds:
        found.add(name, structure=windowed(change))
    return found
