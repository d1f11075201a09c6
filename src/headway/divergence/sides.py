"""The two sides of a comparison: a model whose steps have names, or any other PyTorch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from headway.attention import dispatch
from headway.attention.arrays import as_numpy
from headway.attention.kernels.table import KERNELS
from headway.check import targets
from headway.data.tokenizers import Tokenizer
from headway.divergence.operations import Operation, Place, record
from headway.hf.stored import find
from headway.hf.watch import watch
from headway.models.parameters import one_of
from headway.torch.gpt import GPT
from headway.tracing import INSIDE, edit, trace

Steps = dict[str, Tensor]  # float64 on the CPU, by name


@dataclass(frozen=True)
class Settings:
    """How a side is run.

    attention: the kernel. dtype: of the parameters. engine: torch or jax.
    """

    attention: str | None = None
    dtype: str | None = None
    engine: str = "torch"

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Settings:
        """Check the names and values. Raises ValueError for unknown ones."""
        for name in given:
            one_of("setting", name, [field.name for field in fields(cls)])
        settings = cls(**given)
        if settings.attention is not None:
            one_of("attention", settings.attention, KERNELS)
        if settings.dtype is not None:
            one_of("dtype", settings.dtype, ("float32", "float64", "bfloat16", "float16"))
        one_of("engine", settings.engine, ("torch", "jax"))
        return settings


@final
@dataclass
class Named:
    """A model whose steps have names: Headway's, or one of transformers that can be watched.

    load: makes the model in a number format.
    """

    title: str
    settings: Settings
    load: Callable[[str], Any]
    is_watched: bool = False
    tokenizer: Tokenizer | None = None
    vocabulary: int | None = None
    context: int | None = None  # the largest number of tokens, if it is known

    def steps(
        self,
        tokens: np.ndarray,
        dtype: str,
        replaced: Mapping[str, Tensor] | None = None,
        *,
        is_inside: bool = True,
    ) -> Steps:
        """Run the model and return its steps. is_inside: also those inside of attention, which
        the formula computes; otherwise the kernel computes attention."""
        model, changes = self.load(dtype), dict(replaced or {})
        only = None if is_inside else [*self._outside(model, tokens)]
        with ExitStack() as stack:
            if self.is_watched:
                stack.enter_context(watch(model))
            if changes:
                stack.enter_context(edit({n: partial(_replaced, x) for n, x in changes.items()}))
            steps = stack.enter_context(trace(only))
            output = self._run(model, tokens)
        values = {name: _tensor(value) for name, value in steps.items()}
        values.setdefault("logits", _tensor(output))
        return values

    def _outside(self, model: Any, tokens: np.ndarray) -> list[str]:
        with ExitStack() as stack:
            if self.is_watched:
                stack.enter_context(watch(model))
            steps = stack.enter_context(trace())
            self._run(model, tokens[:, :2])
        return [name for name in steps if name.rpartition(".")[2] not in INSIDE]

    def _run(self, model: Any, tokens: np.ndarray) -> Any:
        if self.settings.engine == "jax":
            return model(tokens)
        with torch.no_grad():
            output = model(torch.from_numpy(tokens))
        return getattr(output, "logits", output)


@final
@dataclass
class Module:
    """Any other PyTorch module: its operations are found by their numbers."""

    title: str
    settings: Settings
    module: nn.Module
    tokenizer: Tokenizer | None = None
    vocabulary: int | None = None
    context: int | None = None  # the largest number of tokens, if it is known

    def runner(
        self, tokens: np.ndarray, dtype: str
    ) -> Callable[[Mapping[Place, Tensor], int | None], list[Operation]]:
        """Return a function that runs the module, as `operations.record` does."""
        model = deepcopy(self.module).to(getattr(torch, dtype)).eval()
        return partial(record, model, torch.from_numpy(tokens))


def opened(
    target: Any, settings: Mapping[str, str] | None = None, runs: str = "runs"
) -> Named | Module:
    """Open a side: a run, a Hugging Face folder, a module, or `file.py:function`.

    Raises ValueError if it is none of these.
    """
    how = Settings.read(settings or {})
    if isinstance(target, str | Path) and ":" not in str(target):
        stored = find(str(target), runs)

        @cache
        def load(dtype: str) -> Any:
            kind: Any = how.engine, "cpu", dtype
            return _with_kernel(stored.load(*kind), how.attention)

        tokenizer = stored.tokenizer if (stored.path / "tokenizer.json").is_file() else None
        config = stored.gpt
        return Named(stored.name, how, load, False, tokenizer, config.vocabulary, config.context)
    title = str(target) if isinstance(target, str) else type(target).__name__
    model = targets.load(target) if isinstance(target, str) else target
    if not isinstance(model, nn.Module):
        model = _called(model, title)
    if how.engine != "torch":
        raise ValueError(f"{title} is a PyTorch module; remove engine={how.engine}")
    if isinstance(model, GPT) or _is_watchable(model):
        is_watched = not isinstance(model, GPT)
        if is_watched and how.attention is not None:
            raise ValueError(f"attention= needs a model of Headway ({title} is of transformers)")

        @cache
        def copied(dtype: str) -> Any:
            copy = deepcopy(model).to(getattr(torch, dtype)).eval()
            return _with_kernel(copy, how.attention)

        theirs: Any = model.config
        if not is_watched:
            sizes = theirs.vocabulary, theirs.context
        else:
            theirs = theirs.get_text_config()
            sizes = theirs.vocab_size, getattr(theirs, "max_position_embeddings", None)
        return Named(title, how, copied, is_watched, None, *sizes)
    if how != Settings():
        raise ValueError(f"settings need a model whose steps have names ({title} has none)")
    return Module(title, how, model)


def _called(function: Any, title: str) -> nn.Module:
    if not callable(function):
        raise ValueError(f"{title} must be a module or a function that returns one")
    try:
        model = function()
    except Exception as error:
        note = "expected a function without arguments that returns a torch.nn.Module"
        raise ValueError(f"{title}() raised {type(error).__name__}: {error}; {note}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{title}() must return a torch.nn.Module (got {type(model).__name__})")
    return model


def _is_watchable(model: nn.Module) -> bool:
    can = getattr(model, "_can_set_attn_implementation", None)
    return can is not None and bool(can())


def _with_kernel(model: Any, kernel: str | None) -> Any:
    if kernel is not None:
        for block in getattr(model, "blocks", ()):
            block.attention.attend = partial(dispatch.run, kernel=kernel)
    return model


def _replaced(new: Tensor, old: Any) -> Any:
    if isinstance(old, Tensor):
        return new.to(old)
    from jax import numpy as jnp  # the model is one of JAX

    return jnp.asarray(new.numpy(), dtype=old.dtype)


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(as_numpy(value), dtype=np.float64))
