"""`Subject`: an attention as a function of NumPy arrays, whatever its library and its layout.

The attention may be a module or a function of three tensors, of one, or of tokens. The checks see
inputs and outputs in one layout, in which the tokens are on the axis before the last.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import numpy as np

from headway.check.declaration import Declaration
from headway.check.libraries import Library


class Refused(Exception):  # noqa: N818 - the attention refused, the check goes on
    """The attention raised an error, or does not support a call; the message says which."""


def call_directly(attention: Any, *inputs: Any, **options: Any) -> Any:
    """Call an attention that needs no adapter."""
    return attention(*inputs, **options)


@final
@dataclass
class Subject:
    """An attention, its declaration, and how to call it; `probe.subject_of` makes one.

    Inputs are lists of NumPy arrays: queries, keys and values (batch, heads, tokens, head_dim) for
    kind "qkv", x (batch, tokens, width) for "self", tokens (batch, tokens) for "model". Outputs
    have the tokens on axis -2. Every method raises `Refused` if the attention raises an error.

    dtype: of floating-point inputs. longest: the number of tokens that it accepts. problem: the
    error of the first call, or "". rounding: the relative error of its internal arithmetic, if
    that is less precise than float64. influences: a cache of the checks.
    """

    attention: Any
    declared: Declaration
    call: Callable[..., Any]
    library: Library
    width: int
    vocabulary: int
    dtype: str
    longest: int
    problem: str = ""
    rounding: float = 0.0
    influences: dict[int, np.ndarray] = field(default_factory=dict, init=False)
    _copies: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def module(self) -> Any:
        """The attention if it is a module of PyTorch, else None."""
        return self.attention if is_module(self.attention) else None

    @property
    def kind(self) -> str:
        """qkv, self or model."""
        return self.declared.kind

    @property
    def kv_heads(self) -> int:
        """qkv: the number of heads of keys and values."""
        return self.declared.kv_heads or self.declared.heads

    @property
    def head_counts(self) -> tuple[int, int, int]:
        """qkv: the number of heads of queries, keys and values."""
        return self.declared.heads, self.kv_heads, self.kv_heads

    @property
    def always_causal(self) -> bool:
        """Whether it is causal in every call."""
        declared = self.declared
        return declared.causal or (declared.kind == "model" and "causal" not in declared.features)

    @property
    def causal(self) -> dict[str, Any]:
        """The options that make it causal."""
        return {"causal": True} if "causal" in self.declared.features else {}

    @property
    def order_free(self) -> bool:
        """Whether permuting tokens only permutes its outputs: no causal mask, no positions."""
        return not self.always_causal and not self.declared.positions

    @property
    def tolerance(self) -> float:
        """The largest relative difference between two ways to compute the same result."""
        return 1e-9 if self.dtype == "float64" else 1e-4

    def inputs(self, tokens: int, *, batch: int = 2, seed: int = 0) -> list[np.ndarray]:
        """Return random inputs with this number of tokens."""
        random = np.random.default_rng((seed, tokens))
        if self.kind == "model":
            return [random.integers(0, self.vocabulary, (batch, tokens))]
        if self.kind == "self":
            return [random.normal(size=(batch, tokens, self.width))]
        head_dim = self.declared.head_dim
        return [random.normal(size=(batch, heads, tokens, head_dim)) for heads in self.head_counts]

    def cut(self, inputs: Sequence[np.ndarray], tokens: Any) -> list[np.ndarray]:
        """Return the inputs at some of their tokens: an index array or a slice."""
        if self.kind == "model":
            return [array[:, tokens] for array in inputs]
        return [array[..., tokens, :] for array in inputs]

    def changed(
        self, inputs: Sequence[np.ndarray], tokens: Any, *, rows: Any = slice(None), size: float = 1
    ) -> list[np.ndarray]:
        """Replace the contents of some tokens (and batch rows); qkv: only of keys and values."""
        random = np.random.default_rng(99)
        changed = [array.copy() for array in inputs]
        if self.kind == "model":
            changed[0][rows, tokens] = (changed[0][rows, tokens] + 1) % self.vocabulary
            return changed
        for array in changed[1:] if self.kind == "qkv" else changed:
            shape = array[rows, ..., tokens, :].shape
            array[rows, ..., tokens, :] = random.normal(size=shape) * size
        return changed

    def run(
        self,
        inputs: Sequence[np.ndarray],
        *,
        dtype: str | None = None,
        train: bool = False,
        strided: bool = False,
        expanded: bool = False,
        compiled: bool = True,
        **options: Any,
    ) -> np.ndarray:
        """Return the output (batch, [heads,] tokens, features), in float64."""
        dtype = dtype or self.dtype
        native = self.native(inputs, dtype)
        if strided:
            native = [self.library.strided(array) for array in native]
        if expanded:
            native = [self.library.expanded(array) for array in native]
        attention = self.attention_in(dtype, train)
        output = self.output(attention, native, self.native_options(options), compiled)
        return self.canonical(self.library.numpy(output))

    def weights(self, inputs: Sequence[np.ndarray], **options: Any) -> np.ndarray:
        """qkv: return the weights (batch, heads, queries, keys), by means of one-hot values.

        There must be at most head_dim keys.
        """
        queries, keys, values = inputs
        one_hot = np.eye(keys.shape[-2], values.shape[-1])
        output = self.run([queries, keys, np.broadcast_to(one_hot, values.shape)], **options)
        return output[..., : keys.shape[-2]]

    def chunks(self, inputs: Sequence[np.ndarray], cuts: Sequence[int]) -> np.ndarray:
        """Return the output computed in chunks between the cuts, with a cache of earlier tokens."""
        outputs, cache = [], None
        for first, end in zip((0, *cuts), (*cuts, None), strict=True):
            if self.kind == "qkv":
                queries, keys, values = inputs
                part = [queries[..., first:end, :], keys[..., :end, :], values[..., :end, :]]
                outputs.append(self.run(part, **self.causal))
                continue
            native = self.native(self.cut(inputs, slice(first, end)), self.dtype)
            with _errors():
                output, cache = self.call(self.attention_in(self.dtype), *native, cache=cache)
            outputs.append(self.library.numpy(output))
        return np.concatenate(outputs, axis=-2)

    def leaves_inputs_unchanged(self, inputs: Sequence[np.ndarray], **options: Any) -> bool:
        """Whether a call leaves its arrays as they were."""
        native, native_options = self.native(inputs, self.dtype), self.native_options(options)
        arrays = [*native, *filter(self.library.is_array, native_options.values())]
        before = [self.library.numpy(array) for array in arrays]
        self.output(self.attention_in(self.dtype), native, native_options)
        return all(map(np.array_equal, map(self.library.numpy, arrays), before))

    def loss(self, inputs: Sequence[np.ndarray]) -> float:
        """model: return its loss for the tokens as labels."""
        (tokens,) = self.native(inputs, self.dtype)
        loss = self.output(self.attention_in(self.dtype), [tokens], {"labels": tokens})
        return float(self.library.numpy(loss))

    def rounded(self, dtype: str) -> Subject:
        """Round the parameters of a module to a precision; a function stays as it is."""
        if self.module is None:
            return self
        torch = sys.modules["torch"]
        if self.attention_in(self.dtype) is self.module:
            raise Refused("cannot be copied")
        module = copy.deepcopy(self.module).to(getattr(torch, dtype))
        return replace(self, attention=module.to(getattr(torch, self.dtype)))

    # Between NumPy and the library

    def output(
        self,
        attention: Any,
        native: Sequence[Any],
        options: dict[str, Any],
        compiled: bool = True,
    ) -> Any:
        """Call the attention with arrays of its library."""
        call: Callable[..., Any] = partial(self.call, attention, **options)
        if compiled:
            call = self.library.compiled(self.call, attention, options)
        with _errors():
            output = call(*native)
        output = output[0] if isinstance(output, (tuple, list)) and output else output
        if not self.library.is_array(output):
            kind = type(output).__name__
            raise Refused(f"returned a {kind}, not an array of {self.library.name}")
        return output

    def attention_in(self, dtype: str, train: bool = False) -> Any:
        """Return the function, or a copy of the module in this precision, in its mode."""
        if self.module is None:
            return self.attention
        if dtype not in self._copies:
            try:
                module = copy.deepcopy(self.module)
            except Exception:
                if dtype != self.dtype:
                    raise Refused(f"cannot be copied, so it was not run in {dtype}") from None
                module = self.module
            else:
                module = module.to(getattr(sys.modules["torch"], dtype))
            self._copies[dtype] = module
        return self._copies[dtype].train(train)

    def native(self, inputs: Sequence[np.ndarray], dtype: str) -> list[Any]:
        """Convert arrays to the library, in the declared layout."""
        return [self.library.array(array, dtype) for array in self.laid_out(inputs)]

    def native_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Convert options to the library; a mask to its declared shape and meaning."""
        converted = dict(options)
        if "mask" in options:
            mask = options["mask"]
            if self.declared.mask_shape == "full":
                tokens = mask.shape[-1]
                mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
                mask = np.broadcast_to(mask, (len(mask), 1, tokens, tokens))
            converted["mask"] = mask if self.declared.mask_true == "attend" else ~mask
        return {
            name: self.library.array(np.ascontiguousarray(value), self.dtype)
            if isinstance(value, np.ndarray)
            else value
            for name, value in converted.items()
        }

    def laid_out(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Convert arrays to the declared layout."""
        if self.kind != "qkv" or self.declared.layout == "bhtd":
            return [np.ascontiguousarray(array) for array in inputs]
        moved = [np.ascontiguousarray(np.swapaxes(array, 1, 2)) for array in inputs]
        if self.declared.layout == "bthd":
            return moved
        return [array.reshape((*array.shape[:2], -1)) for array in moved]

    def canonical(self, output: np.ndarray) -> np.ndarray:
        """Convert an output from the declared layout."""
        try:
            return self.from_layout(output, self.declared.heads)
        except ValueError:
            layout = self.declared.layout
            raise Refused(
                f"returned the shape {output.shape}, which is not the layout {layout!r}"
            ) from None

    def from_layout(self, array: np.ndarray, heads: int) -> np.ndarray:
        """Convert an array with this number of heads from the declared layout."""
        if self.kind != "qkv" or self.declared.layout == "bhtd":
            return array
        if self.declared.layout == "packed":
            batch, tokens, _ = array.shape
            array = array.reshape((batch, tokens, heads, -1))
        return np.swapaxes(array, 1, 2)


def is_module(attention: Any) -> bool:
    """Whether this is a module of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(attention, torch.nn.Module)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn the errors of the attention, also an exit, into `Refused`."""
    try:
        yield
    except Refused:
        raise
    except (Exception, SystemExit) as error:
        raise refused(error) from error


def refused(error: BaseException) -> Refused:
    """Describe an error of the attention in one line."""
    return Refused(f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")


@contextmanager
def unchanged(attention: Any) -> Iterator[None]:
    """Restore a module's mode, parameters and buffers afterwards."""
    if not is_module(attention):
        yield
        return
    modes = {module: module.training for module in attention.modules()}
    values = [*attention.parameters(), *attention.buffers()]
    copies = [value.detach().clone() for value in values]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with sys.modules["torch"].no_grad():
            for value, saved in zip(values, copies, strict=True):
                value.copy_(saved)
