"""The two sides of a comparison: a model whose steps have names, or any other PyTorch module."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from headway import engines
from headway.attention import dispatch
from headway.attention.arrays import as_numpy
from headway.attention.kernels.table import KERNELS
from headway.check import targets
from headway.data.tokenizers import Tokenizer
from headway.divergence.calls import Call, Steps, calls, joined, replaced
from headway.divergence.names import kind
from headway.divergence.operations import Interrupted, Operation, logits_of, record
from headway.divergence.settings import Settings
from headway.explore import trace_file
from headway.hf.stored import StoredModel, find
from headway.hf.watch import watch
from headway.models.parameters import one_of
from headway.torch import devices
from headway.torch.gpt import GPT
from headway.tracing import INSIDE, edit, trace
from headway.training import checkpoints
from headway.training.settings import TrainingConfig


@dataclass
class Side:
    """One of the two models.

    title: its name, to which the settings are added. context: the largest number of tokens, if it
    is known. is_masked: whether it predicts masked tokens. training: the settings of a run. loss: a
    function (model, tokens); optimizer: a function of the model; by default those of Headway.
    """

    title: str
    settings: Settings = field(default_factory=Settings)
    tokenizer: Tokenizer | None = None
    vocabulary: int | None = None
    context: int | None = None
    is_masked: bool = False
    training: TrainingConfig | None = None
    loss: Callable[[Any, Tensor], Tensor] | None = None
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None

    def __post_init__(self) -> None:
        if settings := str(self.settings):
            self.title = f"{self.title} ({settings})"


@final
@dataclass
class Named(Side):
    """A model whose steps have names: Headway's, or one of transformers that can be watched.

    load: makes the model in a number format. exact: the same model in PyTorch, if this is in JAX.
    """

    load: Callable[[str], Any] = field(kw_only=True)
    is_watched: bool = False
    exact: Named | None = None

    @property
    def in_torch(self) -> Named:
        """The same model in PyTorch, which can compute in float64."""
        return self.exact or self

    def steps(
        self,
        tokens: np.ndarray,
        dtype: str,
        changes: Mapping[str, Tensor] | None = None,
        *,
        is_inside: bool = True,
    ) -> Steps:
        """Run the model and return its steps. changes: the values that replace those of steps.

        is_inside: whether the formula computes attention, so that the steps inside of it are there
        too; otherwise the kernel does.
        """
        model = self.load(dtype)
        only = None if is_inside else [*self._outside(model, tokens)]
        parts = []
        with self.with_kernel(model) if not is_inside else nullcontext():
            for call, run in calls(model, tokens, self.settings):
                try:
                    parts.append((call, self._traced(model, run, call, changes or {}, only)))
                except Interrupted as error:
                    if not is_inside:
                        raise ValueError(f"{self.title} raised {error}") from error
                    parts.append((call, error.done))
                    error.done = self._whole(parts)
                    raise
        return self._whole(parts)

    @contextmanager
    def with_kernel(self, model: Any) -> Iterator[None]:
        """Let the kernel of the settings compute attention, until exit."""
        kernel = self.settings.attention
        if self.is_watched:
            with watch(model, kernel) if kernel is not None else nullcontext():
                yield
            return
        attentions = [block.attention for block in getattr(model, "blocks", ())]
        before = [getattr(attention, "attend", None) for attention in attentions]
        for attention in attentions if kernel is not None else ():
            attention.attend = partial(dispatch.run, kernel=kernel)
        try:
            yield
        finally:
            for attention, attend in zip(attentions, before, strict=True):
                if kernel is not None:
                    attention.attend = attend

    def _whole(self, parts: Sequence[tuple[Call, Steps]]) -> Steps:
        return parts[0][1] if self.settings.is_whole else joined(parts)

    def _traced(
        self,
        model: Any,
        run: Callable[[], Any],
        call: Call,
        changes: Mapping[str, Tensor],
        only: list[str] | None,
    ) -> Steps:
        """The steps of one call. only: the names of those that are recorded, by default all."""
        how = {name: partial(self._changed, name, x, call) for name, x in changes.items()}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.is_watched:
                stack.enter_context(watch(model))
            if how:
                stack.enter_context(edit(how))
            steps = stack.enter_context(trace(only))
            try:
                output = run()
            except (Exception, SystemExit) as error:
                done = {name: _tensor(value) for name, value in steps.items()}
                raise Interrupted(error, done) from error
        values = {name: _tensor(value) for name, value in steps.items()}
        values.setdefault("logits", _tensor(getattr(output, "logits", output)))
        return values

    def _changed(self, name: str, new: Tensor, call: Call, old: Any) -> Any:
        is_tensor = isinstance(old, Tensor)
        if not self.settings.is_whole:
            new = replaced(name, new, call, old if is_tensor else torch.from_numpy(np.array(old)))
        if is_tensor:
            return new.to(old)
        from jax import numpy as jnp  # late: the model is one of JAX

        return jnp.asarray(new.numpy(), dtype=old.dtype)

    def _outside(self, model: Any, tokens: np.ndarray) -> list[str]:
        """The names of the steps outside of attention, and those that go in and come out."""
        with ExitStack() as stack:
            if self.is_watched:
                stack.enter_context(watch(model))
            stack.enter_context(torch.no_grad())
            steps = stack.enter_context(trace())
            for _, run in calls(model, tokens[:, :1], self.settings):
                run()
        return [name for name in steps if kind(name) not in INSIDE]


@final
@dataclass
class Module(Side):
    """Any other PyTorch module: its operations are found by their numbers."""

    module: nn.Module = field(kw_only=True)

    def model(self, dtype: str) -> nn.Module:
        """A copy in a number format."""
        return _copy(self.module, self.settings, dtype)

    def logits(self, tokens: np.ndarray, dtype: str) -> list[tuple[Call, Tensor]]:
        """The logits of each call. Raises ValueError if the module raises an error."""
        output = []
        for call, run in calls(self.model(dtype), tokens, self.settings):
            try:
                with torch.no_grad():
                    output.append((call, logits_of(run()).double().cpu()))
            except (Exception, SystemExit) as error:
                what = str(error)
                if not isinstance(error, ValueError):
                    what = f"{self.title} raised {type(error).__name__}: {error}"
                raise ValueError(f"{what} (in the call of token {call.start})") from error
        return output

    def runner(
        self, tokens: np.ndarray, dtype: str, at: Call | None = None, vocabulary: int | None = None
    ) -> Callable[..., list[Operation]]:
        """A function that runs the module and records a call, by default the only one.

        vocabulary: the number of logits that are recorded, by default all. The arguments of the
        function are those of `operations.record`.
        """
        model = self.model(dtype)

        def logits(make: Callable[[], Any]) -> Tensor:
            output = logits_of(make())
            return output if vocabulary is None else output[..., :vocabulary]

        def run(*arguments: Any) -> list[Operation]:
            for call, make in calls(model, tokens, self.settings):
                if at is None or call == at:
                    return record(model, partial(logits, make), *arguments)
                with torch.no_grad():
                    make()
            raise AssertionError(at)

        return run


@final
@dataclass
class Recorded(Side):
    """The steps in a trace file, and their tokens (batch, tokens)."""

    recorded: Steps = field(kw_only=True)
    tokens: np.ndarray = field(kw_only=True)

    def steps(self, tokens: np.ndarray, dtype: str, *_: Any, **options: Any) -> Steps:
        """The recorded steps. Raises ValueError if they are those of other tokens."""
        if not np.array_equal(tokens, self.tokens):
            raise ValueError(f"{self.title} was recorded with other tokens")
        return dict(self.recorded)


def opened(
    target: Any, settings: Mapping[str, Any] | None = None, runs: str = "runs"
) -> Named | Module | Recorded:
    """Open a side: a run, a Hugging Face folder, a trace file, a module, or `file.py:function`.

    Raises ValueError for anything else.
    """
    how = Settings.read(settings or {})
    if how.engine == "torch":
        devices.choose(how.device)  # raises ValueError if this machine does not have it
    if str(target).endswith(".py"):
        raise ValueError(f"{target} needs the name of a function, as in {target}:load")
    if isinstance(target, str | Path) and ":" not in str(target):
        if trace_file.is_trace_file(str(target), runs):
            return _recorded(Path(target), how)
        return _stored(find(str(target), runs), how)
    title = str(target) if isinstance(target, str) else type(target).__name__
    model = targets.load(target) if isinstance(target, str) else target
    own = _functions(target) if isinstance(target, str) else {}
    if not isinstance(model, nn.Module):
        model = _called(model, title)
    for name in ("engine", "checkpoint"):
        if getattr(how, name) != getattr(Settings(), name):
            raise ValueError(f"{title} is a PyTorch module; remove {name}={getattr(how, name)}")
    if isinstance(model, GPT):
        sizes = model.config.vocabulary, model.config.context, model.config.is_masked
        return Named(title, how, None, *sizes, load=_copies(model, how), **own)
    if _is_watchable(model):
        if how.attention is not None:
            with watch(model, how.attention):  # raises ValueError for an unknown one
                pass
        theirs: Any = model.config
        config = theirs.get_text_config()
        known = config.vocab_size, getattr(config, "max_position_embeddings", None)
        is_masked = type(model).__name__.endswith("MaskedLM")
        load = _copies(model, how)
        return Named(title, how, None, *known, is_masked, load=load, is_watched=True, **own)
    for name in ("attention", "dtype", "pad_left", "pad_right"):
        if getattr(how, name) != getattr(Settings(), name):
            raise ValueError(f"{name}= needs a model whose steps have names ({title} has none)")
    return Module(title, how, module=model, **own)


def _functions(target: str) -> dict[str, Any]:
    """The functions `loss` and `optimizer` in the file or module of a target."""
    where = target.rpartition(":")[0]
    space = vars(sys.modules[f"checked {Path(where).stem}" if where.endswith(".py") else where])
    return {n: space[n] for n in ("loss", "optimizer") if inspect.isfunction(space.get(n))}


def _stored(stored: StoredModel, how: Settings) -> Named:
    checkpoint = None
    if how.checkpoint is not None:
        if stored.run is None:
            raise ValueError(f"{stored.name} is not a run; remove checkpoint={how.checkpoint}")
        steps = {checkpoints.step_of(x): x for x in checkpoints.complete(stored.run.checkpoints)}
        if how.checkpoint not in steps:
            kept = ", ".join(map(str, steps))
            raise ValueError(f"checkpoint must be one of {kept} (got {how.checkpoint})")
        checkpoint = steps[how.checkpoint]

    @cache
    def load(dtype: str) -> Any:
        engine: Any = how.engine
        kind: Any = how.device, dtype
        if checkpoint is None or stored.run is None:
            return stored.load(engine, *kind)
        return engines.engine_named(engine).load(stored.run, checkpoint, *kind)

    if how.attention is not None:
        one_of("attention", how.attention, KERNELS)
    tokenizer = stored.tokenizer if (stored.path / "tokenizer.json").is_file() else None
    sizes = stored.gpt.vocabulary, stored.gpt.context, stored.gpt.is_masked
    training = None if stored.run is None else stored.run.config.training
    exact = None if how.engine == "torch" else _stored(stored, replace(how, engine="torch"))
    return Named(stored.name, how, tokenizer, *sizes, training, load=load, exact=exact)


def _recorded(path: Path, how: Settings) -> Recorded:
    if how != Settings():
        raise ValueError(f"{path} is a trace file, which has no settings")
    tensors, manifest = trace_file.opened(path)
    if manifest.get("kind") != "model":
        raise ValueError(f"{path} is not the trace of a language model")
    names = [name for name, _ in manifest["steps"] if name in tensors]
    steps = {name: _tensor(tensors[name]) for name in names}
    tokens = np.array([[token["id"] for token in manifest["tokens"]]])
    return Recorded(str(path), recorded=steps, tokens=tokens)


def _copies(model: nn.Module, how: Settings) -> Callable[[str], Any]:
    if how.attention is not None and isinstance(model, GPT):
        one_of("attention", how.attention, KERNELS)
    return cache(partial(_copy, model, how))


def _copy(model: nn.Module, how: Settings, dtype: str) -> nn.Module:
    try:
        copy = deepcopy(model).to(how.device, getattr(torch, dtype)).eval()
    except Exception as error:
        what = f"copying {type(model).__name__} raised {type(error).__name__}: {error}"
        raise ValueError(what) from error
    for part in copy.modules():
        choose: Any = getattr(part, "set_experts_implementation", None)
        if choose is not None:
            choose("eager")  # the others have no float64
    return copy


def _called(function: Any, title: str) -> nn.Module:
    if not callable(function):
        raise ValueError(f"{title} must be a module or a function that returns one")
    try:
        model = function()
    except (Exception, SystemExit) as error:
        note = "expected a function without arguments that returns a torch.nn.Module"
        raise ValueError(f"{title}() raised {type(error).__name__}: {error}; {note}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{title}() must return a torch.nn.Module (got {type(model).__name__})")
    return model


def _is_watchable(model: nn.Module) -> bool:
    can = getattr(model, "_can_set_attn_implementation", None)
    return can is not None and bool(can())


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(as_numpy(value), dtype=np.float64))
