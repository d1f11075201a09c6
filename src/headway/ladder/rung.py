"""What a rung of the ladder is, and the example that all of them work on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, final
from zlib import crc32

import numpy as np
from jaxtyping import Bool, Float

from headway.attention.arrays import Array
from headway.attention.dropout import Seed
from headway.attention.formula import MaskLike
from headway.attention.masks import materialise
from headway.tracing import Trace, trace

Parameters = Mapping[str, Array]
Shapes = dict[str, tuple[int, ...]]

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

    shapes: from a RungConfig to the shape of each parameter; weight matrices are (d_in, d_out).
    function: `(x, parameters, *, ...) -> context`, naming those of the options of `apply` that
        this rung has.
    example: parameters and options for the book's six words, three features each.
    """

    name: str
    idea: str
    equation: str
    source: str
    function: Callable[..., Array]
    shapes: Callable[[RungConfig], Shapes] = lambda config: {}
    example: Callable[[], tuple[Parameters, dict[str, Any]]] = lambda: ({}, {})
    options: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = inspect.signature(self.function).parameters
        object.__setattr__(self, "options", frozenset(names) - {"x", "parameters"})

    def apply(
        self,
        x: Float[Array, "*batch tokens d_in"],
        parameters: Parameters,
        *,
        heads: int = 1,
        mask: MaskLike = None,
        dropout: float = 0.0,
        seed: Seed | None = None,
        attend: Callable[..., Array] | None = None,
    ) -> Float[Array, "*batch tokens d_out"]:
        """The context of every token.

        mask: on top of the rung's own. attend: what does the work, from `causal` on; by default
        the rung's own, which is `parts.attention` until `tiled` brings another.
        Raises ValueError for heads or dropout on a rung that does not know them yet.
        """
        if heads != 1 and "heads" not in self.options:
            raise ValueError(f"the rung {self.name!r} has one head: several come with 'stacked'")
        if dropout and "dropout" not in self.options:
            raise ValueError(f"the rung {self.name!r} has no dropout: it comes with 'dropout'")
        given = {"heads": heads, "mask": mask, "dropout": dropout, "seed": seed}
        if attend is not None:
            given["attend"] = attend
        known = {name: value for name, value in given.items() if name in self.options}
        return self.function(x, parameters, **known)


def allowed(mask: MaskLike, x: Float[Array, "*batch tokens d"]) -> Bool[Array, "..."] | None:
    """Which tokens each token may see, (..., tokens, tokens); None when there is no mask."""
    if mask is None:
        return None
    with_head = x[..., None, :, :]
    return materialise(mask, with_head, with_head)[..., 0, :, :]


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
    parameters, options = rung.example()
    with trace() as steps:
        context = rung.apply(inputs, parameters, **options)
    return words, steps, context


def frozen(**arrays: Any) -> Parameters:
    """Parameters of an example, as float64 arrays."""
    return MappingProxyType({name: np.asarray(value, float) for name, value in arrays.items()})
