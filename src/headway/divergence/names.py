"""The parts of the names of steps, such as blocks.0.attention.unrotated_queries."""

from __future__ import annotations

import re


def kind(name: str) -> str:
    """The last word: unrotated_queries."""
    return name.rpartition(".")[2]


def role(name: str) -> str:
    """What a step of attention is about: queries."""
    return kind(name).rpartition("_")[2]


def block(name: str) -> str:
    """The layer: blocks.0. The name itself, if the step is in no layer."""
    match = re.match(r".*\bblocks\.\d+", name)
    return match[0] if match else name


def in_any_layer(name: str) -> str:
    """The name without the number of the layer: blocks.*.attention.unrotated_queries."""
    return re.sub(r"\bblocks\.\d+", "blocks.*", name)
