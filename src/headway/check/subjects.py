"""The attention under examination, as a function of NumPy arrays in one layout.

Whatever it is (a module or a function, of three tensors, of one, or of tokens), the checks see:
inputs in, an output with its tokens on the axis before the last.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from itertools import product
from typing import Any, Literal, final

import numpy as np

from headway.check.engines import ENGINES, Engine, NoGradients, Torch, undisturbed

FEATURES = {
    "mask": "boolean, of the keys (batch, keys) or full (batch, 1, queries, keys)",
    "causal": "bool: no query sees a later key",
    "window": "int: a query sees that many keys, itself included",
    "softcap": "float: c * tanh(scores / c), before the mask",
    "dropout": "qkv: a float, the share of the weights; else: there is dropout while training",
    "positions": "qkv: integers (tokens,): queries and keys are turned (rotary)",
    "cache": "keys of earlier tokens; qkv: with causal, the last query meets the last key; "
    "else: cache=None or what the last call gave, returns (output, cache)",
    "documents": "model: integers (batch, tokens): a token sees its own document only",
    "labels": "model: integers (batch, tokens), the tokens themselves; returns the loss",
    "tied": "model: the embedding and the output share one weight",
}
NOT_FINITE = "numbers that are not finite"
LENGTHS = (33, 16, 8, 6, 4)  # of the texts; a module may be built for shorter ones


class Refused(Exception):  # noqa: N818 - the name says it
    """The attention raised an error, or cannot be asked; the message says what."""


@dataclass(frozen=True)
class Declaration:
    """What its maker says about an attention; `diagnose` explains the fields."""

    kind: Literal["qkv", "self", "model"]
    layout: Literal["bhtd", "bthd", "packed"] = "bhtd"
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int = 8
    width: int | None = None
    vocabulary: int | None = None
    causal: bool = False
    positions: bool = False
    block: bool = False
    mask_true: Literal["attend", "masked"] = "attend"
    mask_shape: Literal["keys", "full"] = "keys"
    rotary: Literal["half", "interleaved"] = "half"
    features: tuple[str, ...] = ()
    engine: Literal["numpy", "torch", "jax"] | None = None
    device: str = "cpu"
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        choices = {
            "kind": ("qkv", "self", "model"),
            "layout": ("bhtd", "bthd", "packed"),
            "mask_true": ("attend", "masked"),
            "mask_shape": ("keys", "full"),
            "rotary": ("half", "interleaved"),
            "engine": ("numpy", "torch", "jax", None),
            "precision": ("float64", "float32"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                said = ", ".join(repr(each) for each in allowed if each)
                raise ValueError(f"{name} is one of {said}: {getattr(self, name)!r} is not")
        for name in ("heads", "width", "vocabulary"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more: {getattr(self, name)} is not")
        if self.head_dim < 2:
            raise ValueError(
                "head_dim is 2 or more: with one feature no two keys can be told apart"
            )
        for feature in self.features:
            if feature not in FEATURES:
                near = get_close_matches(feature, FEATURES, n=1, cutoff=0.0)[0]
                raise ValueError(f"no feature is called {feature!r}; did you mean {near!r}?")
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        if kv_heads < 1 or self.heads % kv_heads:
            raise ValueError(f"{kv_heads} kv_heads do not divide {self.heads} heads")

    @classmethod
    def of(cls, **declared: Any) -> Declaration:
        """Raises ValueError, naming the nearest, for a name that is none."""
        known = [field.name for field in fields(cls)]
        for name in declared:
            if name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"nothing to declare is called {name!r}; did you mean {near!r}?")
        features = declared.get("features") or ()
        features = features.split(",") if isinstance(features, str) else features
        return cls(**{**declared, "features": tuple(each.strip() for each in features)})


@final
class Subject:
    """An attention and what is declared about it.

    Inputs are lists of NumPy arrays: queries, keys and values (batch, heads, tokens, head_dim) for
    kind "qkv", x (batch, tokens, width) for "self", tokens (batch, tokens) for "model". Outputs
    have the tokens on axis -2. Every method raises `Refused` when the attention does.
    """

    def __init__(
        self, attention: Any, declared: Declaration, call: Callable[..., Any] | None = None
    ) -> None:
        self.attention, self.declared = attention, declared
        self.call = _call if call is None else call
        self._copies: dict[str, Any] = {}
        self.kv_heads = declared.kv_heads or declared.heads
        self.dtype, self.longest, self.problem = "float64", LENGTHS[-1], ""
        self.rounding = 0.0  # of its own arithmetic, where that is coarser than its inputs
        self.influences: dict[int, np.ndarray] = {}  # what several checks look at
        torch = sys.modules.get("torch")
        self.module = attention if torch and isinstance(attention, torch.nn.Module) else None
        self.width = declared.width or self._found_width()
        self.vocabulary = declared.vocabulary or self._found_vocabulary()
        if self.kind == "model" and self.vocabulary < 2:
            raise ValueError("a vocabulary of one token cannot be told apart: vocabulary=1000")
        self.engine = self._engine()

    # What it is

    @property
    def kind(self) -> str:
        """qkv, self or model."""
        return self.declared.kind

    @property
    def always_causal(self) -> bool:
        """Whether no call of it sees later tokens."""
        declared = self.declared
        return declared.causal or (declared.kind == "model" and "causal" not in declared.features)

    @property
    def causal(self) -> dict[str, Any]:
        """The options that make it causal."""
        return {"causal": True} if "causal" in self.declared.features else {}

    @property
    def order_free(self) -> bool:
        """Whether tokens are a set to it: no mask of its own, nothing that knows positions."""
        return not self.always_causal and not self.declared.positions

    @property
    def tolerance(self) -> float:
        """How far, of the largest number, two ways to the same result may lie apart."""
        return 1e-9 if self.dtype == "float64" else 1e-4

    # Inputs

    def inputs(self, tokens: int, *, batch: int = 2, seed: int = 0) -> list[np.ndarray]:
        """Random inputs of so many tokens."""
        random = np.random.default_rng((seed, tokens))
        declared = self.declared
        if declared.kind == "model":
            return [random.integers(0, self.vocabulary, (batch, tokens))]
        if declared.kind == "self":
            return [random.normal(size=(batch, tokens, self.width))]
        heads = (declared.heads, self.kv_heads, self.kv_heads)
        return [random.normal(size=(batch, h, tokens, declared.head_dim)) for h in heads]

    def cut(self, inputs: Sequence[np.ndarray], tokens: Any) -> list[np.ndarray]:
        """The inputs at some of their tokens: an index array or a slice."""
        if self.kind == "model":
            return [each[:, tokens] for each in inputs]
        return [each[..., tokens, :] for each in inputs]

    def changed(
        self, inputs: Sequence[np.ndarray], tokens: Any, *, rows: Any = slice(None), size: float = 1
    ) -> list[np.ndarray]:
        """Other contents at some tokens (and batch rows). qkv: the keys and values alone."""
        random = np.random.default_rng(99)
        changed = [each.copy() for each in inputs]
        if self.kind == "model":
            some = changed[0][rows, tokens]
            changed[0][rows, tokens] = (some + 1) % self.vocabulary
            return changed
        for each in changed[1:] if self.kind == "qkv" else changed:
            some = each[rows, ..., tokens, :]
            each[rows, ..., tokens, :] = random.normal(size=some.shape) * size
        return changed

    # Outputs

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
        """Its output (batch, [heads,] tokens, features), in float64."""
        dtype = dtype or self.dtype
        native = [self.engine.array(each, dtype) for each in self._laid_out(inputs)]
        if strided:
            native = [self.engine.strided(each) for each in native]
        if expanded:
            native = [self.engine.expanded(each) for each in native]
        out = self._output(self._ready(dtype, train), native, self._options(options), compiled)
        return self._canonical(self.engine.numpy(out))

    def weights(self, inputs: Sequence[np.ndarray], **options: Any) -> np.ndarray:
        """qkv: the weights (batch, heads, queries, keys), seen through values that are one-hot.

        There must be no more keys than head_dim.
        """
        queries, keys, values = inputs
        one_hot = np.eye(keys.shape[-2], values.shape[-1])
        seen = self.run([queries, keys, np.broadcast_to(one_hot, values.shape)], **options)
        return seen[..., : keys.shape[-2]]

    def chunks(self, inputs: Sequence[np.ndarray], cuts: Sequence[int]) -> np.ndarray:
        """The output, computed from one cut to the next, with what came before in a cache."""
        found, cache = [], None
        for first, end in zip((0, *cuts), (*cuts, None), strict=True):
            if self.kind == "qkv":
                queries, keys, values = inputs
                part = [queries[..., first:end, :], keys[..., :end, :], values[..., :end, :]]
                found.append(self.run(part, **self.causal))
                continue
            part = self.cut(inputs, slice(first, end))
            native = [self.engine.array(each, self.dtype) for each in part]
            try:
                out, cache = self.call(self._ready(self.dtype, False), *native, cache=cache)
            except (Exception, SystemExit) as error:
                raise _refused(error) from error
            found.append(self.engine.numpy(out))
        return np.concatenate(found, axis=-2)

    def untouched(self, inputs: Sequence[np.ndarray], **options: Any) -> bool:
        """Whether a call leaves the arrays that it was given as they were."""
        native = [self.engine.array(each, self.dtype) for each in self._laid_out(inputs)]
        ready = self._options(options)
        given = [*native, *(value for value in ready.values() if self.engine.is_own(value))]
        before = [self.engine.numpy(each) for each in given]
        self._output(self._ready(self.dtype, False), native, ready)
        return all(
            np.array_equal(self.engine.numpy(each), was)
            for each, was in zip(given, before, strict=True)
        )

    def unused(self) -> tuple[int, list[str]]:
        """How many parameters there are to learn, and the names of those that take no part."""
        ready = self._ready(self.dtype, False)
        parameters = {name: p for name, p in ready.named_parameters() if p.requires_grad}
        native = [self.engine.array(each, self.dtype) for each in self.inputs(4)]
        torch = sys.modules["torch"]
        with torch.enable_grad():
            out = self._output(ready, native, self._options(self.causal))
            if not out.requires_grad:
                return len(parameters), [*parameters]
            found = torch.autograd.grad(out.sum(), [*parameters.values()], allow_unused=True)
        unused = [name for name, g in zip(parameters, found, strict=True) if g is None]
        return len(parameters), unused

    def loss(self, inputs: Sequence[np.ndarray]) -> float:
        """model: its own loss, when it is given the tokens as labels."""
        (tokens,) = (self.engine.array(each, self.dtype) for each in inputs)
        out = self._output(self._ready(self.dtype, False), [tokens], {"labels": tokens})
        return float(self.engine.numpy(out))

    # Derivatives

    def smooth(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What the output depends on smoothly: the inputs, or a shift of a model's embeddings."""
        if self.kind != "model":
            return [*inputs]
        width = self._embedding(self._ready(self.dtype, False)).embedding_dim
        return [np.zeros((*inputs[0].shape, width))]

    @property
    def unit(self) -> float:
        """The usual size of a number that the output depends on smoothly."""
        if self.kind != "model":
            return 1.0
        return float(
            self.engine.numpy(self._embedding(self._ready(self.dtype, False)).weight).std()
        )

    def at(
        self,
        inputs: Sequence[np.ndarray],
        smooth: Sequence[np.ndarray],
        *,
        dtype: str | None = None,
        **options: Any,
    ) -> np.ndarray:
        """The output where the smooth part of the inputs is another."""
        dtype = dtype or self.dtype
        function = self._function(inputs, dtype, options)
        native = [self.engine.array(each, dtype) for each in self._laid_out(smooth)]
        return self._canonical(self.engine.numpy(function(*native)))

    def gradients(
        self,
        inputs: Sequence[np.ndarray],
        weight: np.ndarray,
        *,
        dtype: str | None = None,
        **options: Any,
    ) -> list[np.ndarray]:
        """Of sum(output * weight), for each of `smooth(inputs)`. weight: shaped as the output."""
        dtype = dtype or self.dtype
        function = self._function(inputs, dtype, options)
        native = [self.engine.array(each, dtype) for each in self._laid_out(self.smooth(inputs))]
        (laid_out,) = self._laid_out([weight]) if self.kind == "qkv" else [weight]
        try:
            found = self.engine.gradients(function, native, laid_out)
        except NoGradients as error:
            raise Refused(str(error)) from error
        except Refused:
            raise
        except Exception as error:
            raise _refused(error) from error
        arrays = [self.engine.numpy(each) for each in found]
        if self.kind != "qkv":
            return arrays
        heads = (self.declared.heads, self.kv_heads, self.kv_heads)
        return [self._from_layout(a, h) for a, h in zip(arrays, heads, strict=True)]

    def _function(
        self, inputs: Sequence[np.ndarray], dtype: str, options: dict[str, Any]
    ) -> Callable[..., Any]:
        ready, native_options = self._ready(dtype, False), self._options(options)
        if self.kind != "model":
            return lambda *smooth: self._output(ready, smooth, native_options)
        tokens = [self.engine.array(each, dtype) for each in inputs]
        embedding = self._embedding(ready)

        def shifted(shift: Any) -> Any:
            handle = embedding.register_forward_hook(lambda module, args, out: out + shift)
            try:
                return self._output(ready, tokens, native_options)
            finally:
                handle.remove()

        return shifted

    # How it is called

    def _output(
        self, ready: Any, native: Sequence[Any], options: dict[str, Any], compiled: bool = True
    ) -> Any:
        call: Callable[..., Any] = partial(self.call, ready, **options)
        if compiled:
            call = self.engine.compiled(self.call, ready, options)
        try:
            out = call(*native)
        except (Exception, SystemExit) as error:
            raise _refused(error) from error
        out = out[0] if isinstance(out, (tuple, list)) and out else out
        if not self.engine.is_own(out):
            raise Refused(f"returned a {type(out).__name__}, not an array of {self.engine.name}")
        return out

    def _ready(self, dtype: str, train: bool) -> Any:
        """The function; a module as a copy in this precision, training or not."""
        if self.module is None:
            return self.attention
        if dtype not in self._copies:
            try:
                ready = copy.deepcopy(self.module)
            except Exception:
                if dtype != self.dtype:
                    raise Refused(f"cannot be copied, so not run in {dtype}") from None
                ready = self.module
            else:
                ready = ready.to(getattr(sys.modules["torch"], dtype))
            self._copies[dtype] = ready
        return self._copies[dtype].train(train)

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options as its maker wants them."""
        ready = dict(options)
        if "mask" in ready:
            mask = ready["mask"]
            if self.declared.mask_shape == "full":
                tokens = mask.shape[-1]
                mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
                mask = np.broadcast_to(mask, (len(mask), 1, tokens, tokens))
            ready["mask"] = mask if self.declared.mask_true == "attend" else ~mask
        return {
            name: self.engine.array(np.ascontiguousarray(value), self.dtype)
            if isinstance(value, np.ndarray)
            else value
            for name, value in ready.items()
        }

    def _laid_out(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self.kind != "qkv" or self.declared.layout == "bhtd":
            return [np.ascontiguousarray(each) for each in inputs]
        moved = [np.ascontiguousarray(np.swapaxes(each, 1, 2)) for each in inputs]
        if self.declared.layout == "bthd":
            return moved
        return [each.reshape((*each.shape[:2], -1)) for each in moved]

    def _canonical(self, out: np.ndarray) -> np.ndarray:
        if self.kind != "qkv":
            return out
        try:
            return self._from_layout(out, self.declared.heads)
        except ValueError:
            layout = self.declared.layout
            raise Refused(f"returned the shape {out.shape}, no {layout!r} layout") from None

    def _from_layout(self, array: np.ndarray, heads: int) -> np.ndarray:
        if self.declared.layout == "bhtd":
            return array
        if self.declared.layout == "packed":
            batch, tokens, _ = array.shape
            array = array.reshape((batch, tokens, heads, -1))
        return np.swapaxes(array, 1, 2)

    def rounded(self, dtype: str) -> Subject:
        """The same with parameters rounded to a precision; a function is as it is."""
        if self.module is None:
            return self
        torch = sys.modules["torch"]
        if self._ready(self.dtype, False) is self.module:
            raise Refused("cannot be copied")
        exact = getattr(torch, self.dtype)
        rounded = copy.deepcopy(self.module).to(getattr(torch, dtype)).to(exact)
        return Subject(rounded, self.declared, self.call)

    # What can be found out about it

    def _engine(self) -> Engine:
        """The library that it works with; also how long a text, and which precision, it takes."""
        named = "torch" if self.module is not None else self.declared.engine
        candidates = [named] if named else [name for name in ENGINES if name in sys.modules]
        problems = []
        for name in candidates:
            self.engine = Torch(self._device()) if name == "torch" else ENGINES[name]()
            with undisturbed(self.engine):
                found = self._first_run(named is None)
                if found is None:
                    self._see_rounding()
                    return self.engine
            problems.append(f"{found} (with {name})")
        self.problem = "; ".join(dict.fromkeys(problems))
        return self.engine

    def _first_run(self, guessing: bool) -> str | None:
        """The problem, or None when it ran."""
        problem = ""
        precisions = dict.fromkeys((self.declared.precision, "float32"))
        for precision, tokens in product(precisions, LENGTHS):
            self._copies.clear()
            self.dtype, self.longest = precision, tokens
            inputs = self.inputs(self.longest)
            try:
                if guessing:
                    self._belongs(inputs)
                self._has_shape(self.run(inputs))
            except Refused as error:
                problem = str(error)
            else:
                return None
        return problem

    def _has_shape(self, out: np.ndarray) -> None:
        """Raise Refused unless this is an output for `longest` tokens, of finite numbers."""
        declared = self.declared
        before = (2, declared.heads, self.longest) if self.kind == "qkv" else (2, self.longest)
        last = {"qkv": (declared.head_dim,), "self": out.shape[-1:], "model": (self.vocabulary,)}
        if out.shape != (*before, *last[self.kind]):
            said = (*before, "features") if self.kind == "self" else (*before, *last[self.kind])
            raise Refused(f"returned the shape {out.shape} instead of {said}".replace("'", ""))
        if not np.isfinite(out).all():
            first = int(np.argwhere(~np.isfinite(np.moveaxis(out, -2, 0)))[:, 0].min())
            raise Refused(f"gives {NOT_FINITE} from token {first} on")

    def _belongs(self, inputs: Sequence[np.ndarray]) -> None:
        """Raise Refused unless it is a function of this library: those of the others choke on the
        bait, or give arrays of their own."""
        native = [self.engine.bait(each, self.dtype) for each in self._laid_out(inputs)]
        self._output(self.attention, native, {})

    def _see_rounding(self) -> None:
        """Whether something inside (a norm or a softmax in float32, whatever comes in) rounds.
        Then float32 goes in, too.

        Three points near each other lie on a line but for the curvature, which grows with the
        square of their distance: by 10,000 from the shorter to the longer one here. Rounding does
        not, and what is rounded coarsely does not move at all over the shorter one.
        """
        inputs = self.inputs(min(7, self.longest))
        random = np.random.default_rng(7)
        bends = []
        try:
            smooth = self.smooth(inputs)
            for distance in (1e-6, 1e-4):
                shift = distance * self.unit * random.normal(size=smooth[0].shape)
                here, before, after = (
                    self.at(inputs, [smooth[0] + sign * shift, *smooth[1:]]) for sign in (0, -1, 1)
                )
                bends.append(float(np.abs(before + after - 2 * here).max() / np.abs(here).max()))
        except Refused:  # no embedding that could be moved
            return
        short, long = bends
        if (short > 1e-9 and long < 1e3 * short) or (long > 1e-5 and long > 1e5 * short):
            self.rounding, self.dtype = max(bends), "float32"

    def _device(self) -> str:
        if self.module is not None:
            for parameter in self.module.parameters():
                return str(parameter.device)
        return self.declared.device

    def _found_width(self) -> int:
        if self.kind != "self":
            return 0
        width = found_width(self.attention)
        if width is None:
            raise ValueError("say how many features a token has: width=64 (--width 64)")
        return width

    def _found_vocabulary(self) -> int:
        if self.kind != "model":
            return 0
        for module in self.module.modules() if self.module is not None else ():
            if isinstance(getattr(module, "num_embeddings", None), int):
                return int(module.num_embeddings)
        raise ValueError("say how many different tokens there are: vocabulary=1000")

    def _embedding(self, model: Any) -> Any:
        """The layer that looks a model's tokens up."""
        tokens, found = self.inputs(4, batch=1)[0], []
        tables = [m for m in model.modules() if hasattr(m, "num_embeddings")] if self.module else []

        def seen(table: Any, args: Any, out: Any) -> None:
            if np.array_equal(self.engine.numpy(args[0]), tokens):
                found.append(table)

        handles = [table.register_forward_hook(seen) for table in tables]
        try:
            self._output(model, [self.engine.array(tokens, self.dtype)], {})
        finally:
            for handle in handles:
                handle.remove()
        if not found:
            raise Refused("has no nn.Embedding that looks up the tokens, which have no gradients")
        return found[0]


def found_width(attention: Any) -> int | None:
    """How many features a token of this attention has, where that can be seen."""
    for name in ("embed_dim", "d_model", "d_in", "hidden_size", "width"):
        if isinstance(getattr(attention, name, None), int):
            return int(getattr(attention, name))
    modules = attention.modules() if hasattr(attention, "modules") else ()
    found = (getattr(module, "in_features", None) for module in modules)
    return next((int(width) for width in found if isinstance(width, int)), None)


def _call(attention: Any, *inputs: Any, **options: Any) -> Any:
    return attention(*inputs, **options)


def _refused(error: BaseException) -> Refused:
    if isinstance(error, Refused):
        return error
    said = " ".join(str(error).split())
    return Refused(f"raised {type(error).__name__}: {said[:200]}")


@contextmanager
def left_alone(attention: Any) -> Iterator[None]:
    """Whatever happens, a module's mode, parameters and buffers are afterwards as they were."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(attention, torch.nn.Module):
        yield
        return
    modes = {each: each.training for each in attention.modules()}
    values = [*attention.parameters(), *attention.buffers()]
    before = [value.detach().clone() for value in values]
    try:
        yield
    finally:
        for each, mode in modes.items():
            each.training = mode
        with torch.no_grad():
            for value, was in zip(values, before, strict=True):
                value.copy_(was)
