"""`Subject`: calls an attention of any library and layout with NumPy arrays.

The attention may be a module or a function, and take queries, keys and values, or x, or tokens. The
checks see inputs and outputs in one layout, with the tokens on the second-to-last axis.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import numpy as np

from headway.check.declaration import Declaration
from headway.check.errors import Refused, errors_as_refused
from headway.check.layouts import from_layout, to_layout, to_mask
from headway.check.libraries import Library
from headway.check.modules import converted, is_module
from headway.check.signature import required


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

    dtype: the data type of floating-point inputs. longest: the largest number of tokens to use.
    problem: the errors, if no call succeeded, else "". trace: where they were raised. rounding: the
    relative error of its internal arithmetic, if that is less precise than float64. memory: results
    that several checks use, by name.
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
    trace: tuple[str, ...] = ()
    rounding: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict, init=False)
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
    def causal_options(self) -> dict[str, Any]:
        """The options that switch the causal mask on; empty if it has no such option."""
        return {"causal": True} if "causal" in self.declared.features else {}

    @property
    def tolerance(self) -> float:
        """The largest relative difference between two ways to compute the same result."""
        return 1e-9 if self.dtype == "float64" else 1e-4

    @property
    def noise(self) -> float:
        """The largest relative change that rounding alone can cause."""
        return 64 * float(np.finfo(self.dtype).eps)

    @property
    def few_tokens(self) -> int:
        """A small number of tokens, different from the sizes of the other axes."""
        return min(7, self.longest)

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
        """Return some tokens of the inputs, selected by an index array or a slice."""
        if self.kind == "model":
            return [array[:, tokens] for array in inputs]
        return [array[..., tokens, :] for array in inputs]

    def changed(
        self, inputs: Sequence[np.ndarray], tokens: Any, *, rows: Any = slice(None), size: float = 1
    ) -> list[np.ndarray]:
        """Return copies with other contents for some tokens; qkv: of keys and values only.

        rows: the batch rows to change. size: the standard deviation of the new contents.
        """
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
        arranged: Callable[[Any], Any] = lambda array: array,
        compiled: bool = True,
        **options: Any,
    ) -> np.ndarray:
        """Return the output (batch, [heads,] tokens, features), in float64.

        arranged: a function that changes the memory layout of an array of the library.
        """
        dtype = dtype or self.dtype
        native = [arranged(array) for array in self.native(inputs, dtype)]
        options = {**self.required_options(inputs), **options}
        output = self.output(native, self.native_options(options), dtype, train, compiled)
        return self.canonical(output)

    def required_options(self, inputs: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return values without effect for declared options that have no default value."""
        if self.call is not call_directly:
            return {}
        if "required" not in self.memory:
            self.memory["required"] = required(self.attention, self.declared.features)
        batch, tokens = len(inputs[0]), inputs[-1].shape[1 if self.kind == "model" else -2]
        values = {
            "mask": np.ones((batch, tokens), bool),
            "causal": False,
            "positions": np.zeros(tokens, np.int64),
            "documents": np.zeros((batch, tokens), np.int64),
            "dropout": 0.0,
        }
        return {name: value for name, value in values.items() if name in self.memory["required"]}

    def weights(self, inputs: Sequence[np.ndarray], **options: Any) -> np.ndarray:
        """Return the weights (batch, heads, queries, keys) of kind "qkv".

        The values are one-hot vectors, so that the output equals the weights. There must be at most
        head_dim keys.
        """
        queries, keys, values = inputs
        one_hot = np.eye(keys.shape[-2], values.shape[-1])
        output = self.run([queries, keys, np.broadcast_to(one_hot, values.shape)], **options)
        return output[..., : keys.shape[-2]]

    def chunks(
        self, inputs: Sequence[np.ndarray], cuts: Sequence[int], mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the output computed in chunks between the cuts, with a cache of earlier tokens.

        mask: of all tokens (batch, tokens); a call gets the part of the tokens so far. Not for qkv.
        """
        outputs, cache = [], None
        for first, end in zip((0, *cuts), (*cuts, None), strict=True):
            if self.kind == "qkv":
                queries, keys, values = inputs
                part = [queries[..., first:end, :], keys[..., :end, :], values[..., :end, :]]
                outputs.append(self.run(part, **self.causal_options))
                continue
            native = self.native(self.cut(inputs, slice(first, end)), self.dtype)
            options = {} if mask is None else self.native_options({"mask": mask[:, :end]})
            with errors_as_refused():
                output, cache = self.call(
                    self.attention_in(self.dtype), *native, cache=cache, **options
                )
            outputs.append(self.library.numpy(output))
        return np.concatenate(outputs, axis=-2)

    # Conversion between NumPy and the library

    def output(
        self,
        native: Sequence[Any],
        options: dict[str, Any],
        dtype: str | None = None,
        train: bool = False,
        compiled: bool = True,
    ) -> Any:
        """Call the attention with arrays of its library."""
        attention = self.attention_in(dtype or self.dtype, train)
        call: Callable[..., Any] = partial(self.call, attention, **options)
        if compiled:
            call = self.library.compiled(self.call, attention, options)
        with errors_as_refused():
            output = call(*native)
        output = output[0] if isinstance(output, (tuple, list)) and output else output
        if not self.library.is_array(output):
            kind = type(output).__name__
            raise Refused(f"returned a {kind}; expected an array of {self.library.name}")
        return output

    def attention_in(self, dtype: str, train: bool = False) -> Any:
        """Return the function, or a copy of the module in this precision, training or not."""
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
                module = converted(module, dtype)
            self._copies[dtype] = module
        return self._copies[dtype].train(train)

    def native(self, inputs: Sequence[np.ndarray], dtype: str) -> list[Any]:
        """Convert arrays to the library, in the declared layout."""
        return [self.library.array(array, dtype) for array in to_layout(self.declared, inputs)]

    def native_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Convert options to arrays of the library; a mask gets the declared shape and meaning."""
        if "mask" in options:
            options = {**options, "mask": to_mask(self.declared, options["mask"])}
        return {
            name: self.library.array(np.ascontiguousarray(value), self.dtype)
            if isinstance(value, np.ndarray)
            else value
            for name, value in options.items()
        }

    def canonical(self, output: Any) -> np.ndarray:
        """Convert an output of the library to NumPy, from the declared layout."""
        array = self.library.numpy(output)
        try:
            return from_layout(self.declared, array, self.declared.heads)
        except ValueError:
            layout = self.declared.layout
            raise Refused(
                f"returned the shape {array.shape}, which is not the layout {layout!r}"
            ) from None
