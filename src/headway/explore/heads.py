"""What each head does on one text: on which keys its attention goes."""

from collections.abc import Iterable
from math import isfinite
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def statistics(
    weights: Float[np.ndarray, "... rows keys"],
    rows: Int[np.ndarray, " rows"],
    ids: Iterable[int] | None = None,
) -> dict[str, Any]:
    """Return the numbers of every head of a self-attention, as the manifest stores them.

    weights: the rows of these queries. ids: the tokens of the text; None if they are unknown.

        queries    number of queries over which the means are taken
        repeated   number of those whose token occurred before, over which `induction` is a mean;
                   None if the tokens are unknown
        heads      of each head:
            previous, itself, first   mean attention weight on the previous token, on the token
                                      itself, on the first token
            induction                 mean weight on the token after the last earlier occurrence of
                                      the current token (Olsson et al. 2022); it is the token itself
                                      if the same token came just before
            entropy                   mean entropy of the weights, in nats

    A query that may see one key only, as the first one of causal attention, counts like any other:
    all its weight is on that key, and its entropy is 0. The first query has no previous token and
    is left out of that mean. A mean over no queries, and one that is not finite, is None.
    """
    matrices = weights.reshape(-1, *weights.shape[-2:])
    after = np.full(len(rows), -1) if ids is None else _after_last_occurrence(ids)[rows]
    keys = {"previous": rows - 1, "itself": rows, "first": np.zeros_like(rows), "induction": after}
    columns = {name: _mean_weight(matrices, key) for name, key in keys.items()}
    logarithms = np.log(matrices, out=np.zeros_like(matrices), where=matrices > 0)
    entropy = -np.einsum("hrk,hrk->hr", matrices, logarithms)
    columns["entropy"] = [finite(mean) for mean in entropy.mean(axis=-1)]
    return {
        "queries": len(rows),
        "repeated": None if ids is None else int((after >= 0).sum()),
        "heads": [
            dict(zip(columns, head, strict=True)) for head in zip(*columns.values(), strict=True)
        ],
    }


def finite(number: float) -> float | None:
    """Convert a number for JSON, which has no NaN and no infinity."""
    return float(number) if isfinite(number) else None


def _mean_weight(
    matrices: Float[np.ndarray, "heads rows keys"], keys: Int[np.ndarray, " rows"]
) -> list[float | None]:
    """Return the mean weight of each head on one key per row; rows with key -1 are left out."""
    there = np.flatnonzero(keys >= 0)
    if not len(there):
        return [None] * len(matrices)
    return [finite(mean) for mean in matrices[:, there, keys[there]].mean(axis=-1)]


def _after_last_occurrence(ids: Iterable[int]) -> Int[np.ndarray, " tokens"]:
    """Return for each token the position after its last earlier occurrence; -1 if there is none."""
    positions, seen = [], dict[int, int]()
    for position, token in enumerate(map(int, ids)):
        positions.append(seen.get(token, -2) + 1)
        seen[token] = position
    return np.array(positions)
