"""Somebody's own attention beside the others: `--module yourpkg:YourAttention`.

Of PyTorch: a function of queries, keys and values (batch, heads, tokens, head_dim), or a function
or a module of x (batch, tokens, width). The doctor says whether it is right.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from headway.attention.spec import Unsupported
from headway.bench import exact
from headway.bench.exact import Exact, Inputs
from headway.bench.settings import Setting
from headway.bench.sides import Candidate, TorchSide
from headway.check import diagnose, targets
from headway.check.adapters import known
from headway.check.probe import width_of


@dataclass(frozen=True)
class Yours:
    """An attention that somebody named, and what the doctor needs to know of it.

    declared: its kind ("qkv" or "self", of x) and what else `diagnose` takes; its features are the
    options of `attend` that it has. call: how it is called.
    """

    name: str
    attention: Any
    declared: dict[str, Any]
    call: Callable[..., Any]

    @classmethod
    def load(cls, target: str, settings: Sequence[str]) -> Yours:
        """Raises ValueError, in one line, for what cannot be loaded or is no attention."""
        attention = targets.load(target, settings)
        declared, call = known(attention) or (_declared(target, attention), _call)
        if declared["kind"] == "model":
            raise ValueError(f"{target} is a whole model: name its attention")
        if declared.get("engine", "torch") != "torch":
            raise ValueError(f"{target} is of {declared['engine']}: the bench takes PyTorch's")
        features = [name for name in ("causal", "window") if name in declared["features"]]
        return cls(target, attention, {**declared, "features": features}, call)

    @property
    def of_x(self) -> bool:
        """Whether it takes x, and projects by itself."""
        return bool(self.declared["kind"] == "self")

    @property
    def width(self) -> int | None:
        """Features of a token, where that can be seen."""
        return width_of(self.attention) if self.of_x else None

    def candidate(self, setting: Setting) -> Candidate:
        """It, for settings that differ from this one in nothing that concerns its being right."""
        causal = setting.mask is not None and "causal" not in self.declared["features"]
        declared = {**self.declared, "causal": causal, "device": setting.device}
        if self.of_x:
            declared["width"] = setting.width
        failed = diagnose(self.attention, name=self.name, call=self.call, **declared).failed
        complaint = f"{failed[0].check}: {failed[0].diagnosis}" if failed else ""
        return Candidate(self.name, self._make, complaint, self._right if self.of_x else None)

    def _make(self, setting: Setting, inputs: Inputs) -> TorchSide:
        self._refuse(setting)
        own = self._own(inputs.upstream.dtype, setting)
        if not self.of_x:
            return TorchSide(self._function(own, setting), inputs, setting)
        leaves = (inputs.leaves[0], *_parameters(own))
        return TorchSide(self._function(own, setting), inputs._replace(leaves=leaves), setting)

    def _right(self, setting: Setting) -> Exact | None:
        """Its own results in float64; None for a function, whose weights nobody can convert."""
        if not isinstance(self.attention, nn.Module):
            return None
        low = exact.inputs(setting)
        rounded = self._own(low.upstream.dtype, setting).double()
        x = exact.leaves([low.leaves[0][:1].double()], setting.backward)
        leaves = (*x, *_parameters(rounded))
        right = exact.results(self._function(rounded, setting), leaves, low.upstream[:1])
        return Exact(right, [inf] * len(right), torch.finfo(low.upstream.dtype).eps)

    def _refuse(self, setting: Setting) -> None:
        if self.of_x != setting.projections:
            takes = "x, and projects by itself" if self.of_x else "queries, keys and values"
            raise Unsupported(f"takes {takes}")
        if setting.window is not None and "window" not in self.declared["features"]:
            raise Unsupported("takes no window")
        if setting.dropout:
            raise Unsupported("has no seeded dropout, so a run could not be repeated")

    def _own(self, dtype: torch.dtype, setting: Setting) -> Any:
        """A copy of a module, as the setting wants it; without its dropout."""
        if not isinstance(self.attention, nn.Module):
            return self.attention
        own = copy.deepcopy(self.attention).to(setting.device, dtype)
        return own.eval().requires_grad_(setting.backward)

    def _function(self, own: Any, setting: Setting) -> Callable[..., Tensor]:
        wanted = {"causal": setting.causal, "window": setting.window}
        options = {name: wanted[name] for name in self.declared["features"] if wanted[name]}

        def function(*leaves: Tensor) -> Tensor:
            found = self.call(own, *leaves[: 1 if self.of_x else 3], **options)
            return found[0] if isinstance(found, tuple) else found

        return function


def _parameters(own: Any) -> list[Tensor]:
    return [*own.parameters()] if isinstance(own, nn.Module) else []


def _call(attention: Any, *inputs: Tensor, **options: Any) -> Any:
    return attention(*inputs, **options)


def _declared(target: str, attention: Any) -> dict[str, Any]:
    """What its signature tells: three arrays or one, and which options."""
    if not callable(attention):
        raise ValueError(f"{target} is no attention: give a function or a module")
    called = attention.forward if isinstance(attention, nn.Module) else attention
    parameters = inspect.signature(called).parameters.values()
    inputs = [
        each
        for each in parameters
        if each.default is each.empty
        and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    kinds = {1: "self", 3: "qkv"}
    if len(inputs) not in kinds:
        raise ValueError(f"{target} takes {len(inputs)} inputs, not x or queries, keys and values")
    return {"kind": kinds[len(inputs)], "features": [each.name for each in parameters]}
