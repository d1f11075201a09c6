"""The type of a rung of the ladder, and the example text that all rungs use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float

from headway.attention.arrays import Array, namespace
from headway.attention.dropout import hashed
from headway.attention.formula import Attend, attention
from headway.attention.masks import materialize
from headway.attention.spec import DEFAULT, Spec, used
from headway.tracing import Trace, trace

Parameters = Mapping[str, Array]
Shapes = dict[str, tuple[int, ...]]
Cache = list[tuple[Array, Array]]  # the keys and values so far, for each call of `attend`

SENTENCE = "Your journey starts with one step"
# One example embedding per word, from Raschka, "Build a Large Language Model (From Scratch)", ch. 3
INPUTS = (
    *((0.43, 0.15, 0.89), (0.55, 0.87, 0.66), (0.57, 0.85, 0.64)),
    *((0.22, 0.58, 0.33), (0.77, 0.25, 0.10), (0.05, 0.80, 0.55)),
)


@dataclass(frozen=True)
class RungConfig:
    """Sizes of a rung: features in, features out (all heads together), number of heads."""

    d_in: int
    d_out: int
    heads: int = 1

    @property
    def d_head(self) -> int:
        """The number of features of one head. Raises ValueError if heads do not divide d_out."""
        if self.heads < 1 or self.d_out % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.d_out}")
        return self.d_out // self.heads


@final
@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    apply: `(x, parameters, spec) -> context`; rungs with heads also take `heads=`, causal rungs
        also `attend=`, the function that computes attention.
    shapes: maps a RungConfig to the shape of each parameter; W_* are (d_in, d_out), as in x @ W.
    example: parameters, options (a Spec) and heads for the six words of the book.
    products: maps the number of heads and of blocks of keys to the number of matrix products.
    causal: no token attends to a later one. has_heads, has_dropout: whether the rung supports them.
    has_blocks: only the scores of one block of keys exist at a time.
    equals: the rung with the same result by design.
    step: decodes one token, `(x (..., 1, d_in), parameters, state) -> (context, state)`; rungs
        with heads also take `heads=`; the first state is None. state_size: maps a RungConfig and
        the number of tokens so far to the size of the state. Both are None if the rung must process
        all earlier tokens again for each new token.
    """

    name: str
    idea: str
    equation: str
    source: str
    apply: Callable[..., Array]
    products: Callable[[int, int], int]
    shapes: Callable[[RungConfig], Shapes] = lambda config: {}
    example: Callable[[], Example] = lambda: Example({})
    causal: bool = False
    has_heads: bool = False
    has_dropout: bool = False
    has_blocks: bool = False
    equals: str | None = None
    step: Callable[..., tuple[Array, Any]] | None = None
    state_size: Callable[[RungConfig, int], int] | None = None

    def __call__(
        self,
        x: Float[Array, "*batch tokens d_in"],
        parameters: Parameters,
        spec: Spec = DEFAULT,
        *,
        heads: int = 1,
        attend: Attend | None = None,
    ) -> Float[Array, "*batch tokens d_out"]:
        """The context of every token.

        spec: the options; its mask is combined with that of the rung. attend: the function that
        computes attention, ignored by rungs before `causal`; by default the formula, or the online
        softmax in `tiled`. Raises ValueError for heads and options that the rung does not support.
        """
        if heads != 1 and not self.has_heads:
            raise ValueError(f"rung {self.name!r} has one head; use 'stacked' or a later rung")
        if spec.dropout and not self.has_dropout:
            raise ValueError(f"rung {self.name!r} has no dropout; use 'dropout' or a later rung")
        unsupported = (
            [] if self.causal else [n for n in used(spec) if n not in ("mask", "batch_offset")]
        )
        if unsupported:
            raise ValueError(f"rung {self.name!r} does not support {unsupported[0]!r}, only a mask")
        options: dict[str, Any] = {"heads": heads} if self.has_heads else {}
        if attend is not None and self.causal:
            options["attend"] = attend
        return self.apply(x, parameters, spec, **options)


class Example(NamedTuple):
    """A worked example: parameters, options and heads."""

    parameters: Parameters
    spec: Spec = DEFAULT
    heads: int = 1


def allowed(spec: Spec, x: Float[Array, "*batch tokens d"]) -> Bool[Array, "..."] | None:
    """The mask (..., tokens, tokens) of a Spec as booleans; None if there is no mask."""
    if spec.mask is None:
        return None
    with_head = x[..., None, :, :]
    return materialize(with_head, with_head, spec)[..., 0, :, :]


def with_cache(apply: Callable[..., Array]) -> Callable[..., tuple[Array, Cache]]:
    """Return the `step` of a causal rung, whose state is the keys and values of all tokens so far.

    apply: the function of the rung. It gets an `attend` that appends the new keys and values.
    """

    def step(
        x: Float[Array, "*batch 1 d_in"],
        parameters: Parameters,
        state: Cache | None = None,
        **options: Any,
    ) -> tuple[Float[Array, "*batch 1 d_out"], Cache]:
        extended: Cache = []

        def attend(queries: Array, keys: Array, values: Array, spec: Spec) -> Array:
            if state is not None:
                xp, (earlier_keys, earlier_values) = namespace(keys), state[len(extended)]
                keys = xp.concat([earlier_keys, keys], axis=-2)
                values = xp.concat([earlier_values, values], axis=-2)
            extended.append((keys, values))
            return attention(queries, keys, values, spec)

        return apply(x, parameters, attend=attend, **options), extended

    return step


def keys_and_values(config: RungConfig, tokens: int) -> int:
    """The number of elements in the keys and values of `tokens` tokens."""
    return 2 * config.d_out * tokens


def words_and_inputs(text: str = SENTENCE) -> tuple[list[str], Float[np.ndarray, "tokens 3"]]:
    """Split a text into words and return three features for each word.

    Words of the example sentence have the features of the book. The features of any other word are
    hundredths from 0 to 0.99, from a hash of its letters; learn/static/compute.js does the same.
    """
    words = text.split()
    known = dict(zip(SENTENCE.lower().split(), INPUTS, strict=True))
    rows = [known.get(word) or _features(word) for word in text.lower().split()]
    return words, np.array(rows, dtype=np.float64).reshape((-1, 3))


def _features(word: str) -> list[float]:
    hashes = [hashed((*map(ord, word), feature), np.zeros(1)) for feature in range(3)]
    return [((int(hash_[0]) + 2**31) * 100 >> 32) / 100 for hash_ in hashes]


def run_example(rung: Rung, text: str = SENTENCE) -> tuple[list[str], Trace, Array]:
    """Run the example of a rung on a text; return the words, the traced steps and the context."""
    words, inputs = words_and_inputs(text)
    parameters, spec, heads = rung.example()
    with trace() as steps:
        context = rung(inputs, parameters, spec, heads=heads)
    return words, steps, context


def frozen(**arrays: Any) -> Parameters:
    """Make a read-only mapping of parameters, converted to float64 arrays."""
    return MappingProxyType({name: np.asarray(value, float) for name, value in arrays.items()})
