"""Call a class, such as a PyTorch module, with given matrices as its weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from headway.check.modules import is_module
from headway.learn.answer import Answer
from headway.learn.graders.calls import COPIES, copies, one_of
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
    one head or of all of them.
    """
    for of_all_heads in (False, True):
        for transposed in (False, True):
            for batch in (1, 0):
                yield partial(
                    _call, answer, batch=batch, transposed=transposed, of_all_heads=of_all_heads
                )


def _call(
    answer: Answer,
    inputs: Mapping[str, Any],
    shape: tuple[int, ...],
    *,
    batch: int,
    transposed: bool,
    of_all_heads: bool,
) -> Array:
    instance = _instance(answer, inputs, of_all_heads)
    _set_weights(answer, instance, inputs, transposed)
    called = instance if callable(instance) else getattr(instance, "forward", instance)
    x = copies(inputs["x"], batch)
    return one_of(answer.call(x, of=called, shape=COPIES[:batch] + shape), batch)


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
    answer: Answer, instance: Any, inputs: Mapping[str, Any], transposed: bool
) -> None:
    matrices = {name: array for name, array in inputs.items() if name.startswith("W_")}
    matrices["fused"] = np.concatenate([matrices[name] for name in QUERY_KEY_VALUE], axis=-1)
    used: list[str] = []
    for path, value, assign in _weights(answer, instance):
        if np.ndim(value) < 2:  # a bias
            assign(np.zeros(tuple(value.shape)))
            continue
        name = next((name for name, look in WEIGHTS.items() if re.search(look, path.lower())), None)
        if name is None:
            continue
        matrix = matrices[name] if name in matrices else np.eye(len(value))
        if matrix.ndim > np.ndim(value):  # one matrix per head
            wide = np.concatenate([*matrix], axis=-1)
            is_wide = sorted(wide.shape) == sorted(value.shape)
            matrix = wide if is_wide else matrix[used.count(name) % len(matrix)]
        if path.endswith(".weight") or transposed:
            matrix = matrix.swapaxes(-1, -2)
        if tuple(value.shape) != matrix.shape:
            raise Wrong(
                "weights",
                f"{path} has the shape {tuple(value.shape)}, but it must be {matrix.shape} for "
                f"d_in = {inputs['x'].shape[-1]} and d_out = {inputs['W_query'].shape[-1]}.",
                look=re.escape(path.rpartition(".")[0] or path),
            )
        assign(matrix)
        used.append(name)
    wanted = {*QUERY_KEY_VALUE, *(["W_output"] if "W_output" in inputs else [])}
    missing = wanted - {*used, *(QUERY_KEY_VALUE if "fused" in used else ())}
    if missing:
        raise Wrong(
            "weights",
            f"{', '.join(sorted(missing))} was not found in the class: name it so.",
            look="__init__",
        )


def _weights(answer: Answer, instance: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of each array, its value, and a function that replaces it."""
    if is_module(instance):
        for path, parameter in instance.named_parameters():
            yield path, parameter, partial(_assign, answer, parameter)
        return
    for name, value in list(vars(instance).items()):
        if answer.library.is_array(value) or isinstance(value, np.ndarray):
            yield name, value, partial(_set, answer, instance, name)


def _assign(answer: Answer, parameter: Any, matrix: Array) -> None:
    parameter.data = answer.given(matrix)


def _set(answer: Answer, instance: Any, name: str, matrix: Array) -> None:
    setattr(instance, name, answer.given(matrix))
