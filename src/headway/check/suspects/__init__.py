"""Attention with one fault each, to be compared with an attention under test.

An attention that gives the outputs of a suspect, and not those of the formula, has its fault.
"""

from collections.abc import Iterator

from headway.check.suspects import heads, masks, positions, softmax
from headway.check.suspects.steps import Suspect


def suspects() -> Iterator[Suspect]:
    """Yield all suspects without measured parameters, the most common faults first."""
    yield from masks.of_causal()
    yield from softmax.of_softmax()
    yield from softmax.of_scale()
    yield from heads.of_heads()
    yield from masks.of_option()
    yield from positions.of_positions()
    yield from softmax.of_softcap()
    yield from masks.of_window()
