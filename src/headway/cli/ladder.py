"""`headway ladder`: show the rungs with the numbers of an example."""

from rich.console import Console


def ladder(rung: str | None = None, /, *, text: str = "Your journey starts with one step") -> None:
    """Show the rungs of attention, each with its equation and an example in color.

    Parameters
    ----------
    rung
        Name of one rung; by default all of them in order.
    text
        Words of the example. Each word gets a vector of three numbers; for the words of the default
        sentence it is the vector in the book.
    """
    from headway.ladder.rungs import LADDER, rung_named  # late: `headway --help` is fast
    from headway.ladder.show import show

    console = Console()
    for shown in LADDER.values() if rung is None else [rung_named(rung)]:
        show(shown, text, console)
