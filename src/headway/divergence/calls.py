"""How a model is called: with the whole text, in parts with a cache, or with padding around it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headway.attention.masks import padding
from headway.attention.spec import Spec
from headway.divergence.measure import MISSING
from headway.divergence.names import kind
from headway.divergence.settings import Settings
from headway.torch.gpt import GPT
from headway.tracing import INSIDE

Steps = dict[str, Tensor]  # float64 on the CPU, by name
Slices = tuple[Any, ...]  # an index of an array

# What a cell is that only the run of the whole text computes: a cell of the future.
_FUTURE = {"masked": -torch.inf, "weights": 0.0, "dropped": 0.0}


class Call(NamedTuple):
    """One call of a model, with the columns from start to stop of a text with padding.

    left: the columns of padding before the text. tokens: the length of the text.
    """

    start: int
    stop: int
    left: int
    tokens: int

    def place(self, name: str, shape: Sequence[int]) -> tuple[Slices, Slices]:
        """The cells of a step in this call that belong to the text, and where the text has them.

        A cache may have room for more columns than there are, or have only the last ones.
        """
        rows = self._columns(shape[-2], is_cached=kind(name) in ("keys", "values"))
        if kind(name) not in INSIDE:
            return (..., rows[0], slice(None)), (..., rows[1], slice(None))
        columns = self._columns(shape[-1], is_cached=True)
        return (..., rows[0], columns[0]), (..., rows[1], columns[1])

    def _columns(self, size: int, *, is_cached: bool) -> tuple[slice, slice]:
        first = max(self.stop - size, 0) if is_cached else self.start
        begin, end = max(first, self.left), min(first + size, self.stop, self.left + self.tokens)
        end = max(begin, end)
        return slice(begin - first, end - first), slice(begin - self.left, end - self.left)

    def of_text(self, steps: Mapping[str, Tensor], keys: int | None = None) -> Steps:
        """What this call computes, from the steps of the whole text without padding.

        keys: the number of keys that the cache has, by default all.
        """
        output, first = {}, 0 if keys is None else max(self.stop - keys, 0)
        for name, value in steps.items():
            is_cached = kind(name) in ("keys", "values")
            rows = slice(first if is_cached else self.start, self.stop)
            columns = slice(first, self.stop) if kind(name) in INSIDE else slice(None)
            output[name] = value[..., rows, columns]
        return output


def joined(parts: Sequence[tuple[Call, Steps]]) -> Steps:
    """The steps of the whole text, without padding, from those of all calls."""
    output: Steps = {}
    for call, steps in parts:
        for name, value in steps.items():
            here, there = call.place(name, value.shape)
            if name not in output:
                cells = call.tokens if kind(name) in INSIDE else value.shape[-1]
                shape = (*value.shape[:-2], call.tokens, cells)
                output[name] = value.new_full(shape, _FUTURE.get(kind(name), MISSING))
            output[name][there] = value[here]
    return output


def replaced(name: str, new: Tensor, call: Call, old: Tensor) -> Tensor:
    """A step of a call with the cells of the text replaced by those of a whole text."""
    here, there = call.place(name, old.shape)
    output, part = old.clone(), new[there].to(old)
    output[here] = torch.where(new[there] == MISSING, output[here], part)
    return output


def calls(
    model: Any, tokens: np.ndarray, settings: Settings
) -> Iterator[tuple[Call, Callable[[], Any]]]:
    """The calls that a model needs for tokens (batch, tokens), each with a function that makes it.

    They must be made in this order. Raises ValueError for what the model does not support.
    """
    sides = settings.pad_left, settings.pad_right
    padded = np.pad(tokens, ((0, 0), sides))
    width, length = padded.shape[-1], tokens.shape[-1]
    caller = _caller(model, len(tokens), width, settings)
    size = settings.cache or width
    for start in range(0, width, size):
        call = Call(start, min(start + size, width), settings.pad_left, length)
        yield call, partial(caller, padded[:, call.start : call.stop], call)


def _caller(model: Any, batch: int, width: int, settings: Settings) -> Callable[..., Any]:
    """A function of the tokens of a call, and of the call, that returns what the model returns."""
    if isinstance(model, GPT):
        return _of_headway(model, batch, width, settings)
    if isinstance(model, nn.Module):
        return _of_any(model, batch, settings)
    return _of_jax(model, batch, width, settings)


def _of_headway(model: GPT, batch: int, width: int, settings: Settings) -> Callable[..., Any]:
    device = model.embedding.weight.device
    starts, spec, caches = None, Spec(), None
    if settings.pad_left:
        starts = torch.full((batch,), settings.pad_left, device=device)
    if settings.pad_right:
        lengths = torch.full((batch,), width - settings.pad_right, device=device)
        spec = Spec(mask=padding(lengths))
    if settings.cache:
        if not model.can_cache:
            raise ValueError("cache= needs a model with causal multi-head attention")
        caches, starts = model.caches(width, starts), None

    def run(part: np.ndarray, call: Call) -> Tensor:
        inputs = torch.from_numpy(part).to(device)
        output: Tensor = model(inputs, spec, caches=caches, starts=starts)
        return output

    return run


def _of_jax(model: Any, batch: int, width: int, settings: Settings) -> Callable[..., Any]:
    from jax import numpy as jnp  # late: the model is one of JAX

    from headway.jax import gpt

    if settings.pad_left:
        raise ValueError("JAX does not support padding on the left; use pad_right=")
    params, config, attention = model.params, model.config, model.attention
    if not settings.cache:
        lengths = jnp.full((batch,), width - settings.pad_right)
        spec = Spec(mask=padding(lengths)) if settings.pad_right else Spec()
        return lambda part, call: gpt.forward(params, jnp.asarray(part), config, attention, spec)
    caches = gpt.empty_caches(params, config, batch, width)

    def run(part: np.ndarray, call: Call) -> Any:
        nonlocal caches
        inputs = jnp.asarray(part)
        logits, caches = gpt.forward_cached(params, inputs, config, attention, caches, call.start)
        return logits

    return run


def _of_any(model: nn.Module, batch: int, settings: Settings) -> Callable[..., Any]:
    """Any module, whose arguments are known from their names.

    attention_mask as in transformers. A cache has `past` in its name and begins as None, or `cache`
    and begins as an empty list; the module adds to the list, or returns the next cache (after the
    logits, or as an attribute). start_pos is the number of earlier tokens, for a module that keeps
    the cache itself.
    """
    known = inspect.signature(model.forward).parameters
    names = [
        n for n in known if re.search("past|cache", n) and n not in ("use_cache", "cache_position")
    ]
    device = next((x.device for x in model.parameters()), None)
    is_padded = bool(settings.pad_left or settings.pad_right)
    title = type(model).__name__
    if is_padded and "attention_mask" not in known:
        raise ValueError(f"padding needs a model whose forward takes attention_mask (got {title})")
    if settings.cache and not names and "start_pos" not in known:
        raise ValueError(
            "cache= needs a model whose forward takes past_key_values, cache or start_pos (got "
            f"{title})"
        )
    name = names[0] if names else ""
    state: dict[str, Any] = {name: None if "past" in name else []} if names else {}

    def run(part: np.ndarray, call: Call) -> Any:
        arguments: dict[str, Any] = {}
        if is_padded:
            columns = torch.arange(call.stop, device=device)
            is_text = (columns >= call.left) & (columns < call.left + call.tokens)
            arguments["attention_mask"] = is_text.long().expand(batch, -1)
        if settings.cache:
            arguments |= state
            if "use_cache" in known:
                arguments["use_cache"] = True
            if "start_pos" in known:
                arguments["start_pos"] = call.start
        output = model(torch.from_numpy(part).to(device), **arguments)
        if settings.cache and names:
            state[name] = _next_cache(output, name, state[name], title)
        return output

    return run


def _next_cache(output: Any, name: str, last: Any, title: str) -> Any:
    """The cache after a call. Raises ValueError if the module has not made one."""
    returned = getattr(output, name, None)
    if isinstance(output, tuple) and len(output) > 1:
        returned = output[1]
    cache = last if returned is None else returned
    if cache is None or (isinstance(cache, list) and not cache):
        raise ValueError(f"{title} returned no {name}, and added nothing to it")
    return cache
