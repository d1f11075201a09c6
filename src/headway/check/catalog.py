"""The attentions of Headway that `headway check --self` checks: kernels, rungs, modules, models."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from headway.attention.arrays import Array
from headway.attention.dispatch import attend
from headway.attention.kernels.kernel import refusal
from headway.attention.kernels.table import KERNELS
from headway.attention.masks import as_mask
from headway.attention.options import spec_from
from headway.attention.positions import Rotary, rotary
from headway.attention.spec import DEFAULT, Spec
from headway.check.libraries import LIBRARIES
from headway.ladder.rung import Rung, RungConfig
from headway.ladder.rungs import LADDER
from headway.models.gpt import PRESETS, preset


class Entry(NamedTuple):
    """An attention of Headway: its name, and the arguments of `diagnose`."""

    name: str
    attention: Any
    declared: dict[str, Any]


# Left out, because compiling them for hundreds of shapes takes minutes. Other tests cover them.
SLOW = {("flex", "torch"), ("stacked", "jax"), ("einsum", "jax")}


_SIZES: Mapping[str, Any] = MappingProxyType(
    {"vocabulary": 40, "context": 33, "width": 16, "layers": 2, "attention": {"heads": 4}}
)


def entries(engines: tuple[str, ...]) -> Iterator[Entry]:
    """Yield all attentions for these engines ("numpy", "torch", "jax")."""
    for engine in engines:
        for kernel in KERNELS:
            supported = _supported(kernel, engine)
            if supported is not None and (kernel, engine) not in SLOW:
                function = partial(_attend, kernel=kernel)
                declared = {"kind": "qkv", "engine": engine, "mask_shape": "full", **supported}
                yield Entry(f"kernel {kernel} on {engine}", function, declared)
    for engine in engines:
        if engine != "torch":  # for PyTorch, `_modules` yields the rungs as modules
            for rung in LADDER.values():
                if (rung.name, engine) not in SLOW:
                    yield Entry(f"rung {rung.name} on {engine}", *_rung(rung, engine))
    if "torch" in engines:
        yield from _modules()
    if "jax" in engines:
        yield from _models_on_jax()


def _attend(
    queries: Array,
    keys: Array,
    values: Array,
    *,
    kernel: str,
    positions: Any = None,
    **options: Any,
) -> Array:
    if positions is not None:
        queries, keys = rotary(queries, positions), rotary(keys, positions)
    seed = next(_calls) if options.get("dropout") else None
    return attend(queries, keys, values, kernel=kernel, seed=seed, **options)


_calls = count()


def _supported(kernel: str, engine: str) -> dict[str, Any] | None:
    """Return the options and heads that a kernel supports on an engine; None if it does not run."""
    array = partial(LIBRARIES[engine]().array, dtype="float32")
    x = array(np.zeros((1, 2, 3, 4)))

    def is_supported(keys: Array = x, **options: Any) -> bool:
        return refusal(KERNELS[kernel], x, keys, keys, spec_from(options)) is None

    if not is_supported():
        return None
    trials: dict[str, dict[str, Any]] = {
        "mask": {"mask": array(np.ones((3, 3), bool))},
        "causal": {"causal": True},
        "window": {"window": 2},
        "softcap": {"softcap": 2.0},
        "dropout": {"dropout": 0.1, "seed": 0},
    }
    features = [name for name, options in trials.items() if is_supported(**options)]
    kv_heads = 2 if is_supported(x[:, :1]) else 4  # of 4
    return {"features": (*features, "positions", "cache"), "kv_heads": kv_heads}


def _rung(rung: Rung, engine: str) -> tuple[Any, dict[str, Any]]:
    heads = 2 if rung.has_heads else 1
    random = np.random.default_rng(0)
    shapes = rung.shapes(RungConfig(16, 16, heads))
    parameters = {name: random.normal(size=shape) / 4 for name, shape in shapes.items()}

    def function(x: Array, *, mask: Array | None = None) -> Array:
        cast = {name: value.astype(x.dtype) for name, value in parameters.items()}
        spec = DEFAULT if mask is None else Spec(mask=as_mask(mask[:, None, None, :]))
        return rung(x, cast, spec, heads=heads)

    declared = {"kind": "self", "width": 16, "engine": engine, "features": ("mask",)}
    return function, declared | {"causal": rung.causal, "positions": rung.name == "fixed"}


def _modules() -> Iterator[Entry]:
    from headway.torch import GPT, MultiHeadAttention, RungAttention

    for rung in LADDER.values():
        heads = 2 if rung.has_heads else 1
        spec = Spec(dropout=0.2 if rung.has_dropout else 0.0)
        module = RungAttention(rung, 16, heads=heads, spec=spec)
        yield Entry(f"RungAttention {rung.name}", module, {})
    plain = MultiHeadAttention(16, heads=4, linear_bias=True, spec=Spec(dropout=0.2))
    yield Entry("MultiHeadAttention without a mask", plain, {})
    modern = MultiHeadAttention(16, heads=4, kv_heads=2, rotary=Rotary(), qk_norm=1e-6)
    yield Entry("MultiHeadAttention, grouped, rotary, QK-norm", modern, {})
    yield Entry("GPT, gpt2", GPT(preset("gpt2", _SIZES, dropout=0.1)), {})
    yield Entry("GPT, modern", GPT(preset("modern", _SIZES)), {})
    yield from _translators()


def _models_on_jax() -> Iterator[Entry]:
    from headway.jax import gpt

    for name in PRESETS:
        config = preset(name, _SIZES)
        yield Entry(f"GPT on JAX, {name}", gpt.Model(gpt.init(config, 0), config), {})


def _translators() -> Iterator[Entry]:
    """Yield cross-attentions of x to x, decoders with a fixed source, and an encoder layer."""
    import torch
    from torch import Tensor

    from headway.models.seq2seq import Seq2SeqConfig
    from headway.torch.layers import AdditiveAttention, CrossAttention, ProductAttention
    from headway.torch.seq2seq import EncoderBlock, Seq2Seq

    def to_itself(attention: Any, x: Tensor, mask: Tensor | None = None) -> Any:
        spec = DEFAULT if mask is None else Spec(mask=as_mask(mask[:, None, None]))
        keys = getattr(attention, "keys", None)
        memory = (x,) if keys is None else (keys(x), x)
        return attention(x, *memory, spec)

    def decode(model: Seq2Seq, tokens: Tensor, cache: Any = None) -> Any:
        source = torch.arange(5, 9).repeat(len(tokens), 1)
        lengths = torch.full((len(tokens),), 3)
        memory = model.encode(source, lengths)
        return model.decode(tokens, memory, model.begin(memory) if cache is None else cache)

    def encode(layer: EncoderBlock, x: Tensor, mask: Tensor | None = None) -> Any:
        return layer(x, None if mask is None else as_mask(mask[:, None, None]))

    masked = {"kind": "self", "width": 16, "features": ("mask",)}
    cross = {**masked, "call": to_itself}
    yield Entry("CrossAttention", CrossAttention(16, heads=4), cross)
    yield Entry("AdditiveAttention", AdditiveAttention(16), cross)
    yield Entry("ProductAttention", ProductAttention(16, general=True), cross)
    for kind in ("rnn", "bahdanau", "luong", "transformer"):
        sizes: dict[str, Any] = {"layers": 2, "heads": 4} if kind == "transformer" else {}
        model = Seq2Seq(Seq2SeqConfig(kind, 40, 40, 16, **sizes))
        declared = {"kind": "model", "vocabulary": 40, "features": ("cache",), "call": decode}
        yield Entry(f"decoder of {kind}", model, declared)
    layer = EncoderBlock(Seq2SeqConfig("transformer", 40, 40, 16, heads=4))
    yield Entry("encoder layer of transformer", layer, masked | {"block": True, "call": encode})
