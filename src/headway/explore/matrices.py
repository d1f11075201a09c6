"""The learned matrices of an attention, one per head, with which the page draws each product."""

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from headway.attention.arrays import Array, as_numpy

_ROLES = {"q": "query", "k": "key", "v": "value", "output": "output"}  # of the names of modules


def of_attentions(
    steps: Mapping[str, np.ndarray], parameters: Mapping[str, Array]
) -> dict[str, np.ndarray]:
    """Return the matrices and biases of all attentions of a trace, named as their steps.

    parameters: of the model, by name; multi-head attention and the rungs of the ladder are known.

    W_query (heads, d_in, d_k), W_key and W_value (kv_heads, d_in, ...) are used as in x @ W, and
    W_output (heads, d_v, d_out) as in context @ W. The biases b_query, b_key and b_value have the
    shape (heads, ...), b_output (d_out,), and the scales of QK-norm (d_k,).
    """
    result: dict[str, np.ndarray] = {}
    for name, queries in steps.items():
        if name.rpartition(".")[2] != "queries":
            continue
        prefix = name.removesuffix("queries")
        heads, kv_heads = (
            x.shape[-3] if x.ndim > 2 else 1 for x in (queries, steps[f"{prefix}keys"])
        )
        counts = {"query": heads, "key": kv_heads, "value": kv_heads, "output": heads}
        for part, matrix in _matrices(prefix, parameters).items():
            result[prefix + part] = _by_head(part, matrix, counts)
    return result


def _matrices(prefix: str, parameters: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Return the matrices (d_in, d_out) of an attention, with all heads side by side."""
    owner, head = prefix, None
    if separate := re.fullmatch(r"(.*)heads\.(\d+)\.", prefix):  # the heads of the rung `stacked`
        owner, head = separate[1], int(separate[2])
    given = {n.removeprefix(owner): p for n, p in parameters.items() if n.startswith(owner)}
    result: dict[str, np.ndarray] = {}
    if "W_qkv" in given:
        parts = np.split(as_numpy(given["W_qkv"]), 3, axis=-1)
        result = dict(zip(("W_query", "W_key", "W_value"), parts, strict=True))
    for module, role in _ROLES.items():
        if f"W_{role}" in given:
            matrix = as_numpy(given[f"W_{role}"])
            result[f"W_{role}"] = matrix if head is None else matrix[head]
        if f"{module}.weight" in given:
            result[f"W_{role}"] = as_numpy(given[f"{module}.weight"]).T
        if f"{module}.bias" in given:
            result[f"b_{role}"] = as_numpy(given[f"{module}.bias"])
    norms = ("q_norm.weight", "k_norm.weight")
    return result | {name: as_numpy(given[name]) for name in norms if name in given}


def _by_head(
    name: str, matrix: Float[np.ndarray, "..."], counts: Mapping[str, int]
) -> Float[np.ndarray, "..."]:
    """Split the columns of a matrix into heads, or the rows of W_output."""
    kind, _, role = name.partition("_")
    if role not in counts or name == "b_output":
        return matrix
    if name == "W_output":
        return matrix.reshape(counts[role], -1, matrix.shape[-1])
    split = matrix.reshape(*matrix.shape[:-1], counts[role], -1)
    return split if kind == "b" else np.ascontiguousarray(split.swapaxes(0, 1))
