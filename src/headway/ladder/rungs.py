"""All nine rungs, in order: the one table of the ladder."""

from __future__ import annotations

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
