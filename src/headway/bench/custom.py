"""A custom attention in the comparison: `--module yourpkg:YourAttention`.

In PyTorch: a function of queries, keys and values (batch, heads, tokens, head_dim), or a function
or a module of x (batch, tokens, width). The doctor checks whether it is correct.
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
from headway.bench import expected
from headway.bench.expected import Expected, Inputs
from headway.bench.implementations import UNSEEDED, Candidate, TorchImplementation
from headway.bench.settings import Setting
from headway.check import diagnose, targets
from headway.check.adapters import known
from headway.check.probe import width_of
from headway.check.subject import call_directly


@dataclass(frozen=True)
class CustomAttention:
    """A custom attention, and what the doctor needs to know about it.

    declared: its kind ("qkv", or "self" for attention of x) and other arguments of `diagnose`; its
    features are the options of `attend` that it accepts. call: calls it.
    """

    name: str
    attention: Any
    declared: dict[str, Any]
    call: Callable[..., Any]

    @classmethod
    def load(cls, target: str, settings: Sequence[str]) -> CustomAttention:
        """Load it; raises ValueError, in one line, if that fails or if it is not an attention."""
        attention = targets.load(target, settings)
        declared, call = known(attention) or (_declared(target, attention), call_directly)
        if declared["kind"] == "model":
            raise ValueError(f"{target} is a complete model: give its attention")
        if declared.get("engine", "torch") != "torch":
            raise ValueError(f"{target} is for {declared['engine']}; the bench accepts PyTorch")
        features = [name for name in ("causal", "window") if name in declared["features"]]
        return cls(target, attention, {**declared, "features": features}, call)

    @property
    def of_x(self) -> bool:
        """Whether it takes x and contains the projections."""
        return bool(self.declared["kind"] == "self")

    @property
    def width(self) -> int | None:
        """Features of a token; None if unknown."""
        return width_of(self.attention) if self.of_x else None

    def candidate(self, setting: Setting) -> Candidate:
        """Check it, and return the candidate for this setting and others that have the same mask,
        width and device."""
        causal = setting.mask is not None and "causal" not in self.declared["features"]
        declared = {**self.declared, "causal": causal, "device": setting.device}
        if self.of_x:
            declared["width"] = setting.width
        failed = diagnose(self.attention, name=self.name, call=self.call, **declared).failed
        complaint = f"{failed[0].check}: {failed[0].diagnosis}" if failed else ""
        return Candidate(self.name, self._make, complaint, self._expected if self.of_x else None)

    def _make(self, setting: Setting, inputs: Inputs) -> TorchImplementation:
        if self.of_x != setting.projections:
            takes = "x (with projections)" if self.of_x else "queries, keys and values"
            raise Unsupported(f"takes {takes}")
        if setting.window is not None and "window" not in self.declared["features"]:
            raise Unsupported("does not accept a window")
        if setting.dropout:
            raise Unsupported(UNSEEDED)
        attention = self._copy(inputs.upstream.dtype, setting)
        if self.of_x:
            inputs = inputs._replace(leaves=(inputs.leaves[0], *_parameters(attention)))
        return TorchImplementation(self._function(attention, setting), inputs, setting)

    def _expected(self, setting: Setting) -> Expected | None:
        """Its results in float64; None for a function, whose weights cannot be converted."""
        if not isinstance(self.attention, nn.Module):
            return None
        low = expected.inputs(setting)
        rounded = self._copy(low.upstream.dtype, setting).double()
        x = expected.leaves([low.leaves[0][:1].double()], setting.backward)
        leaves = (*x, *_parameters(rounded))
        values = expected.results(self._function(rounded, setting), leaves, low.upstream[:1])
        return Expected(values, [inf] * len(values), torch.finfo(low.upstream.dtype).eps)

    def _copy(self, dtype: torch.dtype, setting: Setting) -> Any:
        """Copy a module with the dtype and device of the setting, without its dropout."""
        if not isinstance(self.attention, nn.Module):
            return self.attention
        module = copy.deepcopy(self.attention).to(setting.device, dtype)
        return module.eval().requires_grad_(setting.backward)

    def _function(self, attention: Any, setting: Setting) -> Callable[..., Tensor]:
        wanted = {"causal": setting.causal, "window": setting.window}
        options = {name: wanted[name] for name in self.declared["features"] if wanted[name]}

        def function(*leaves: Tensor) -> Tensor:
            output = self.call(attention, *leaves[: 1 if self.of_x else 3], **options)
            return output[0] if isinstance(output, tuple) else output

        return function


def _parameters(attention: Any) -> list[Tensor]:
    return [*attention.parameters()] if isinstance(attention, nn.Module) else []


def _declared(target: str, attention: Any) -> dict[str, Any]:
    """Read from the signature whether it takes three arrays or one, and which options."""
    if not callable(attention):
        raise ValueError(f"{target} is not an attention: give a function or a module")
    called = attention.forward if isinstance(attention, nn.Module) else attention
    parameters = inspect.signature(called).parameters.values()
    inputs = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    kinds = {1: "self", 3: "qkv"}
    if len(inputs) not in kinds:
        raise ValueError(
            f"{target} must take x, or queries, keys and values (it takes {len(inputs)} inputs)"
        )
    return {"kind": kinds[len(inputs)], "features": [parameter.name for parameter in parameters]}
