"""`headway ladder`: the rungs, with real numbers."""

from __future__ import annotations

from rich.console import Console


def ladder(rung: str | None = None, /, *, text: str = "Your journey starts with one step") -> None:
    """Walk up the rungs of attention, each with its equation and its numbers in colour.

    Parameters
    ----------
    rung
        The name of one rung; by default all of them are shown, in order.
    text
        Your own words. Each gets three numbers; those of the book's sentence have the book's.
    """
    from headway.ladder.rungs import LADDER, rung_named  # late: `headway --help` answers at once
    from headway.ladder.show import show

    console = Console()
    for one in LADDER.values() if rung is None else [rung_named(rung)]:
        show(one, text, console)
