"""What the signature of an attention says about how to call it."""

import inspect
from collections.abc import Iterable
from typing import Any

from headway.check.modules import is_module

QKV = ("q", "query", "queries")
TOKENS = ("token", "ids", "idx", "input_ids")


def _parameters(attention: Any) -> list[inspect.Parameter]:
    """Return the parameters of a function or of a module's `forward`, or [] if it has none."""
    try:
        function = attention.forward if is_module(attention) else attention
        return [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # built in
        return []


def required(attention: Any, names: Iterable[str]) -> set[str]:
    """Return which of these parameters have no default value."""
    parameters = _parameters(attention)
    return {p.name for p in parameters if p.default is p.empty} & {*names}


def kind_of(attention: Any) -> str | None:
    """Return the kind that the signature suggests, or None.

    qkv: three required parameters; self: one; model: one, of a module with an embedding, or with
    the name of tokens.
    """
    positional = [
        p for p in _parameters(attention) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    inputs = [p.name.lower() for p in positional if p.default is p.empty]
    if len(inputs) == 3 and not type(attention).__module__.startswith("torch.nn"):
        return "qkv"
    if len(inputs) != 1:
        return None
    modules = attention.modules() if is_module(attention) else ()
    has_embedding = any(hasattr(module, "num_embeddings") for module in modules)
    return "model" if has_embedding or any(name in inputs[0] for name in TOKENS) else "self"
