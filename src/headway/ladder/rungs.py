"""The table of all rungs, in order."""

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
from headway.ladder.rung import Rung, RungConfig
from headway.nearest import named

_MODULES = (fixed, simplified, trainable, causal, dropout, stacked, multihead, fused, tiled)

LADDER: MappingProxyType[str, Rung] = MappingProxyType(
    {module.RUNG.name: module.RUNG for module in _MODULES}
)


def rung_named(name: str) -> Rung:
    """The rung of this name. Raises ValueError with the nearest name if there is none."""
    return named(LADDER, name, "rung")


def markdown() -> str:
    """The ladder as a Markdown table, as in docs/ladder.md."""
    lines = ["| rung | what is new | stored per token during generation |", "|---|---|---|"]
    for name, rung in LADDER.items():
        stored = "the token itself"
        if rung.state_size is not None:
            stored = f"{rung.state_size(RungConfig(1, 1), 1)} d_out numbers"
        lines.append(f"| {name} | {rung.idea} | {stored} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
