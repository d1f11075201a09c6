"""Faults of rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from headway.check.suspects.steps import Array, Rotation, Suspects


def of_positions() -> Suspects:
    """Return faults of rotary positions."""
    fix = "half: cat(x1 * cos - x2 * sin, x2 * cos + x1 * sin), for queries and keys alike"
    found = Suspects(fix, r"cos|sin|rot|position")

    def turned(
        q: Rotation | None, k: Rotation | None, v: Rotation | None
    ) -> tuple[Rotation | None, ...]:
        return q, k, v

    def add(name: str, change: Callable[[Rotation], tuple[Any, Any, Any]], **other: Any) -> None:
        def step(q: Array, k: Array, v: Array, rotation: Rotation | None) -> tuple[Array, ...]:
            if rotation is None:
                return q, k, v
            parts = zip((q, k, v), change(rotation), strict=True)
            return tuple(x if turn is None else turn(x) for x, turn in parts)

        found.add(name, turn=step, **other)

    def to(**changes: Any) -> Callable[[Rotation], Rotation]:
        return lambda r: replace(r, **changes)

    def both(name: str, change: Callable[[Rotation], Rotation], **other: Any) -> None:
        add(name, lambda r: (change(r), change(r), None), **other)

    def opposite(r: Rotation) -> str:
        return "interleaved" if r.pairs == "half" else "half"

    add("positions have no effect: nothing is rotated", lambda r: (None, None, None))
    add("only the queries are rotated, the keys are not", lambda r: (r, None, None))
    add("only the keys are rotated, the queries are not", lambda r: (None, r, None))
    add("the values are rotated, too", lambda r: (r, r, r))
    add("the keys are rotated backwards: the sine has the wrong sign for the keys",
        lambda r: (r, replace(r, factor=-r.factor), None))  # fmt: skip
    both("the direction of the rotation is reversed: the sine has the wrong sign",
         lambda r: replace(r, factor=-r.factor))  # fmt: skip
    both("it uses the other convention: the rotated pairs are interleaved (2i and 2i + 1) instead "
         "of half (i and i + d/2), or the reverse",
         lambda r: replace(r, pairs=opposite(r)))  # fmt: skip
    mixed = "two conventions of rotary positions are mixed: the angles are made for {} pairs, but "
    mixed += "the features are rotated in {} pairs (half: i and i + d/2; interleaved: 2i and 2i+1)"
    for angles, pairs in (("interleaved", "half"), ("half", "interleaved")):
        both(mixed.format(angles, pairs), to(angles=angles, pairs=pairs))
    both("the angles of the rotation are wrong: the exponent is i/d instead of 2i/d",
         lambda r: replace(r, base=r.base**0.5))  # fmt: skip
    both("the angles of the rotation are wrong: the exponent is 4i/d instead of 2i/d",
         lambda r: replace(r, base=r.base**2))  # fmt: skip
    both("the rotation runs along the head axis instead of the token axis: every token of a head "
         "gets the same position",
         to(axis=1))  # fmt: skip
    both("the rotation is applied twice: the angles are doubled",
         lambda r: replace(r, factor=2 * r.factor))  # fmt: skip
    both("all features are rotated by the same angle: the frequencies are missing",
         to(base=1.0))  # fmt: skip
    for base in (500_000.0, 1_000_000.0, 10_000.0, 1000.0):
        both(f"the base of the rotary angles is {base:g}, another one than declared",
             to(base=base),
             declare=f"rotary_base={base:g} (--rotary-base {base:g})")  # fmt: skip
    for share in (0.25, 0.5, 0.75, 1.0):
        both(f"the share of features that is rotated is {share:g}, another one than declared",
             to(share=share),
             declare=f"rotary_share={share:g} (--rotary-share {share:g})")  # fmt: skip

    return found
