"""What a rung of the ladder is, and the example that all of them work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, final
from zlib import crc32

import numpy as np
from jaxtyping import Bool, Float

from headway.attention.arrays import Array, namespace
from headway.attention.formula import Attend
from headway.attention.masks import materialize
from headway.attention.spec import DEFAULT, Spec, used
from headway.tracing import Trace, trace

Parameters = Mapping[str, Array]
Shapes = dict[str, tuple[int, ...]]
State = Any  # what a rung keeps of the tokens so far: keys and values, for each head

SENTENCE = "Your journey starts with one step"
# One made-up embedding a word, from Raschka, "Build a Large Language Model (From Scratch)", ch. 3.
INPUTS = (
    *((0.43, 0.15, 0.89), (0.55, 0.87, 0.66), (0.57, 0.85, 0.64)),
    *((0.22, 0.58, 0.33), (0.77, 0.25, 0.10), (0.05, 0.80, 0.55)),
)


@dataclass(frozen=True)
class RungConfig:
    """Sizes: features in, features out of all heads together, and the heads."""

    d_in: int
    d_out: int
    heads: int = 1

    @property
    def d_head(self) -> int:
        """Features of one head. Raises ValueError when the heads do not divide d_out."""
        if self.heads < 1 or self.d_out % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.d_out}")
        return self.d_out // self.heads


@final
@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    apply: `(x, parameters, spec) -> context`; rungs with heads also take `heads=`, causal ones
        `attend=`, the function that computes attention.
    shapes: from a RungConfig to the shape of each parameter; W_* are (d_in, d_out), as in x @ W.
    example: parameters, options (a Spec) and heads for the book's six words.
    causal: no token sees a later one; has_heads, has_dropout: what the rung knows.
    equals: the rung whose result it gives by design, with the same numbers packed otherwise.
    step: decoding, `(x (..., 1, d_in), parameters, state) -> (context, state)`; rungs with heads
        also take `heads=`; the first state is None. state_size: how many numbers the state of one
        sequence is, from a RungConfig and the tokens so far. Both are None where the rung must
        read its text again.
    """

    name: str
    idea: str
    equation: str
    source: str
    apply: Callable[..., Array]
    shapes: Callable[[RungConfig], Shapes] = lambda config: {}
    example: Callable[[], Example] = lambda: Example({})
    causal: bool = False
    has_heads: bool = False
    has_dropout: bool = False
    equals: str | None = None
    step: Callable[..., tuple[Array, State]] | None = None
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

        spec: the options; the mask is on top of the rung's own. attend: the function that computes
        attention, from `causal` on; by default the formula, or what `tiled` brings instead.
        Raises ValueError for heads and options that the rung does not know yet.
        """
        if heads != 1 and not self.has_heads:
            raise ValueError(f"the rung {self.name!r} has one head; several come with 'stacked'")
        if spec.dropout and not self.has_dropout:
            raise ValueError(f"the rung {self.name!r} has no dropout; it comes with 'dropout'")
        unknown = (
            [] if self.causal else [n for n in used(spec) if n not in ("mask", "batch_offset")]
        )
        if unknown:
            raise ValueError(f"the rung {self.name!r} has no option {unknown[0]!r}, only a mask")
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
    """Which tokens each token may attend to, (..., tokens, tokens); None when there is no mask."""
    if spec.mask is None:
        return None
    with_head = x[..., None, :, :]
    return materialize(with_head, with_head, spec)[..., 0, :, :]


def extended(state: State | None, keys: Array, values: Array) -> State:
    """The keys and values of all tokens so far (..., tokens, dim), with these added."""
    if state is None:
        return keys, values
    xp = namespace(keys)
    return xp.concat([state[0], keys], axis=-2), xp.concat([state[1], values], axis=-2)


def keys_and_values(config: RungConfig, tokens: int) -> int:
    """How many numbers the keys and values of so many tokens are."""
    return 2 * config.d_out * tokens


def words_and_inputs(text: str = SENTENCE) -> tuple[list[str], Float[np.ndarray, "tokens 3"]]:
    """The words of a text and three features for each.

    The book's words have the book's; any other word gets three of its own, always the same.
    """
    words = text.split()
    known = dict(zip(SENTENCE.lower().split(), INPUTS, strict=True))
    rows = [
        known.get(word.lower())
        or np.random.default_rng(crc32(word.lower().encode("utf-8", "replace"))).random(3).round(2)
        for word in words
    ]
    return words, np.array(rows, dtype=np.float64).reshape((-1, 3))


def run_example(rung: Rung, text: str = SENTENCE) -> tuple[list[str], Trace, Array]:
    """A rung on a text: the words, the steps of the mechanism, and the context."""
    words, inputs = words_and_inputs(text)
    parameters, spec, heads = rung.example()
    with trace() as steps:
        context = rung(inputs, parameters, spec, heads=heads)
    return words, steps, context


def frozen(**arrays: Any) -> Parameters:
    """Parameters of an example, as float64 arrays."""
    return MappingProxyType({name: np.asarray(value, float) for name, value in arrays.items()})
