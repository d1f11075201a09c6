"""Call a class, such as a PyTorch module, with given matrices as its weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import permutations, product
from typing import Any

import numpy as np

from headway.check.modules import is_module
from headway.learn.answer import Answer
from headway.learn.graders.calls import COPIES, of_one_copy
from headway.learn.graders.compare import Array, View
from headway.learn.grades import Wrong

# Names of the arguments of classes. The widths of a class with one width are d_in = d_out.
ARGUMENTS = {
    "d_in": r"d_?in|in_?dim|input_?dim|in_features|d_?model|emb\w*|n_embd|dim|hidden\w*|width|d",
    "d_out": r"d_?out|out_?dim|output_?dim|out_features|head_?(size|dim)|d_?(k|v|head)",
    "heads": r"h|n_?heads?|num_?heads|heads|nhead",
    "tokens": r"context\w*|block_?size|max_?\w*|seq\w*|tokens",
    "dropout": r"dropout\w*|p|rate",
    "bias": r"\w*bias",
}
WEIGHTS = {
    "fused": r"qkv|in_proj|c_attn",
    "W_query": r"(^|[._w])q|quer",
    "W_key": r"(^|[._w])k|key",
    "W_value": r"(^|[._w])v|val",
    "W_output": r"out|(^|[._])w?_?o([._]|$)|o_proj|c_proj|(^|[._])proj",
}
QUERY_KEY_VALUE = ("W_query", "W_key", "W_value")


def has_one_width(answer: Answer) -> bool:
    """Whether a class takes one width, for d_in and d_out."""
    return not any(re.fullmatch(ARGUMENTS["d_out"], name.lower()) for name in _names(answer))


def modules(answer: Answer) -> Iterator[View]:
    """Return the ways to call an instance: its matrices (d_in, d_out) or transposed.

    With one matrix per head (heads, d_in, d_k), the argument d_out of the class may be the width of
    one head or of all of them. If the class may hold the three matrices in one array, which needs
    the number 3, they can have any order.
    """
    orders = [*permutations(QUERY_KEY_VALUE)] if re.search(r"\b3\b", answer.source) else []
    for order in orders or [QUERY_KEY_VALUE]:
        for of_all_heads, transposed, batch in product((False, True), (False, True), (0, 1)):
            yield partial(
                _call,
                answer,
                order=order,
                batch=batch,
                transposed=transposed,
                of_all_heads=of_all_heads,
            )


def _call(
    answer: Answer,
    inputs: Mapping[str, Any],
    shape: tuple[int, ...],
    *,
    order: tuple[str, ...],
    batch: int,
    transposed: bool,
    of_all_heads: bool,
) -> Array:
    instance = _instance(answer, inputs, of_all_heads)
    _set_weights(answer, instance, inputs, order, transposed)
    called = instance if callable(instance) else getattr(instance, "forward", instance)

    def run(x: Array) -> Array:
        return answer.call(x, of=called, shape=COPIES[:batch] + shape)

    return of_one_copy(run, [inputs["x"]], batch)


def _names(answer: Answer) -> list[str]:
    try:
        return [*inspect.signature(answer.entry).parameters]
    except (TypeError, ValueError):
        return []


def _instance(answer: Answer, inputs: Mapping[str, Any], of_all_heads: bool) -> Any:
    *heads, d_in, d_out = inputs["W_query"].shape
    sizes = {
        "d_in": d_in,
        "d_out": d_out * heads[0] if heads and of_all_heads else d_out,
        "heads": heads[0] if heads else inputs.get("heads", 1),
        "tokens": 16,
        "dropout": 0.0,
        "bias": False,
    }
    arguments = {}
    for name, parameter in inspect.signature(answer.entry).parameters.items():
        size = next((k for k, v in ARGUMENTS.items() if re.fullmatch(v, name.lower())), None)
        if size is not None:
            arguments[name] = sizes[size]
        elif parameter.default is parameter.empty and parameter.kind < parameter.VAR_POSITIONAL:
            raise Wrong(
                "arguments",
                f"the argument {name!r} of {answer.entry.__name__} is not known: use d_in, d_out "
                "and heads",
                look=r"__init__",
            )
    instance = answer.run(of=answer.entry, **arguments)
    return instance.eval() if is_module(instance) else instance


def _set_weights(
    answer: Answer,
    instance: Any,
    inputs: Mapping[str, Any],
    order: tuple[str, ...],
    transposed: bool,
) -> None:
    matrices = {name: array for name, array in inputs.items() if name.startswith("W_")}
    side_by_side = np.concatenate([matrices[name] for name in order], axis=-1)
    used: list[str] = []
    roles: dict[int, str] = {}
    for path, value, assign in _weights(answer, instance):
        shape = tuple(value.shape)
        if len(shape) < 2:  # a bias
            assign(np.zeros(shape))
            continue
        name = next((name for name, look in WEIGHTS.items() if re.search(look, path.lower())), None)
        stacked = np.stack([matrices[name] for name in order])
        is_stacked = stacked.ndim == 3 == len(shape) and sorted(shape) == sorted(stacked.shape)
        if name is None and (is_stacked or sorted(shape) == sorted(side_by_side.shape)):
            name = "fused"
        if name is None:
            continue
        if roles.setdefault(id(value), name) != name:
            raise Wrong(
                "same-layer",
                f"{roles[id(value)]} and {name} are the same layer, so that they have the same "
                "numbers. Create one layer for each.",
                look=r"self\.\w+ = self\.\w+$",
            )
        if name == "fused":
            matrix = stacked if is_stacked else side_by_side
        else:
            matrix = matrices.get(name, np.eye(len(value)))
        if name in QUERY_KEY_VALUE and matrix.ndim == 2:
            of_heads = np.stack(np.split(matrix, inputs.get("heads", 1), axis=-1))
            if sorted(shape) == sorted(of_heads.shape[1:]):
                matrix = of_heads
        if matrix.ndim > len(shape):  # one matrix per head
            wide = np.concatenate([*matrix], axis=-1)
            is_wide = sorted(wide.shape) == sorted(shape)
            matrix = wide if is_wide else matrix[used.count(name) % len(matrix)]
        if path.endswith(".weight") or transposed:
            matrix = matrix.swapaxes(-1, -2)
        if shape != matrix.shape:
            advice = f"it must be {matrix.shape}"
            if shape == matrix.shape[::-1] and path.endswith(".weight"):
                advice += "; write nn.Linear(d_in, d_out), the width of x first"
            raise Wrong(
                "weights",
                f"{path} has the shape {shape}, but {advice} (for d_in = {inputs['x'].shape[-1]} "
                f"and d_out = {inputs['W_query'].shape[-1]}).",
                look=re.escape(path.rpartition(".")[0] or path),
            )
        assign(matrix)
        used.append(name)
    wanted = {*QUERY_KEY_VALUE, *(["W_output"] if "W_output" in inputs else [])}
    missing = wanted - {*used, *(QUERY_KEY_VALUE if "fused" in used else ())}
    if missing:
        names = " and ".join(sorted(missing))
        raise Wrong(
            "weights",
            f"No layer or matrix of the class can be recognized as {names}. The grader sets them "
            f"by their names: write for example self.{min(missing)} = nn.Linear(...).",
            look="__init__",
        )


def _weights(answer: Answer, instance: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of each array, its value, and a function that replaces it."""
    if is_module(instance):
        for path, parameter in instance.named_parameters(remove_duplicate=False):
            yield path, parameter, partial(_assign, answer, parameter)
    for name, value in list(vars(instance).items()):
        if answer.library.is_array(value) or isinstance(value, np.ndarray):
            yield name, value, partial(_set, answer, instance, name)


def _assign(answer: Answer, parameter: Any, matrix: Array) -> None:
    parameter.data = answer.given(matrix)


def _set(answer: Answer, instance: Any, name: str, matrix: Array) -> None:
    setattr(instance, name, answer.given(matrix))
