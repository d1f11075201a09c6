"""All nine rungs, in order: the one table of the ladder."""

from __future__ import annotations

from difflib import get_close_matches
from types import MappingProxyType

from headway.ladder import (
    causal,
    dropout,
    fixed,
    fused,
    multihead,
    simplified,
    stacked,
    tiled,
    trainable,
)
from headway.ladder.rung import Rung

_MODULES = (fixed, simplified, trainable, causal, dropout, stacked, multihead, fused, tiled)

LADDER: MappingProxyType[str, Rung] = MappingProxyType(
    {module.RUNG.name: module.RUNG for module in _MODULES}
)


def rung_named(name: str) -> Rung:
    """The rung of this name. Raises ValueError, naming the nearest, when there is none."""
    if name not in LADDER:
        near = get_close_matches(name, LADDER, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no rung is called {name!r}; did you mean {near!r}? The rungs: {', '.join(LADDER)}"
        )
    return LADDER[name]
