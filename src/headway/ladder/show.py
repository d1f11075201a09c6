"""Print a rung in the terminal: its idea, its equation, and colored matrices of an example."""

import numpy as np
from jaxtyping import Bool, Float
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from headway.ladder.rung import SENTENCE, Rung, run_example
from headway.tracing import Trace

# The sequential color scale "viridis" from light to dark, which color-blind readers can order.
_SCALE = ((253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84))
_SHOWN = ("scores", "weights", "dropped")
_LONGEST_LABEL = 9


def show(rung: Rung, text: str = SENTENCE, console: Console | None = None) -> None:
    """Print the example of a rung on a text. Raises ValueError for a text without words."""
    if not text.split():
        raise ValueError("the text must have at least one word")
    console = console or Console()
    console.print(picture(rung, text, console.width))


def picture(rung: Rung, text: str, width: int) -> RenderableType:
    """The output of `show`, at most `width` columns wide: the idea, scores, weights and context.

    The matrices show only the first words of the text, as many as fit.
    """
    words, steps, context = run_example(rung, text)
    fit = max(2, (width - 15) // (_LONGEST_LABEL + 1))
    labels = [
        word if len(word) <= _LONGEST_LABEL else word[: _LONGEST_LABEL - 1] + "…"
        for word in words[:fit]
    ]
    parts: list[RenderableType] = [
        Text(rung.idea[0].upper() + rung.idea[1:] + "."),
        Text(rung.equation, style="cyan"),
        Text(rung.source, style="dim"),
    ]
    if len(words) > fit:
        parts.append(Text(f"(showing the first {fit} of {len(words)} words)"))
    shown = [name for name in steps if name.endswith(_SHOWN)]
    for name in shown:
        matrices = steps[name].reshape((-1, len(words), len(words)))
        forbidden = _forbidden(name, steps, matrices.shape)
        for head, matrix in enumerate(matrices):
            which = f", head {head}" if len(matrices) > 1 else ""
            legend = "; ╱╱╱ masked" if forbidden[head].any() else ""
            title = f"{name}{which}: one row per query, one column per key{legend}"
            parts += [
                Rule(Text(title), style="dim"),
                _table(
                    matrix,
                    labels,
                    forbidden[head],
                    columns=labels,
                    colored=not name.endswith("scores"),
                ),
            ]
    if not shown:
        parts.append(Text("(no matrices: scores and weights exist for one block at a time only)"))
    parts += [Rule("context: one row per token", style="dim"), _table(context, labels)]
    return Panel(Group(*parts), title=f"[bold]{escape(rung.name)}[/]", title_align="left")


def _forbidden(
    name: str, steps: Trace, shape: tuple[int, ...]
) -> Bool[np.ndarray, "heads queries keys"]:
    """The cells that are masked, which are shown differently from cells with a weight of 0."""
    prefix, _, step = name.rpartition(".")
    masked = steps.get(f"{prefix}.masked" if prefix else "masked")
    if masked is None or step == "scores":
        return np.zeros(shape, dtype=bool)
    forbidden: np.ndarray = np.isneginf(masked).reshape(shape)
    return forbidden


def _table(
    matrix: Float[np.ndarray, "rows columns"],
    rows: list[str],
    forbidden: Bool[np.ndarray, "rows columns"] | None = None,
    *,
    columns: list[str] | None = None,
    colored: bool = False,
) -> Table:
    table = Table.grid(padding=(0, 1))
    if columns:
        table.add_row("", *(Text(label, style="dim", justify="right") for label in columns))
    darkest = max(float(matrix.max()), 1e-12) if colored else None
    for i, label in enumerate(rows):
        table.add_row(
            Text(label, style="dim"),
            *(
                Text("╱╱╱".rjust(8), style="dim")
                if forbidden is not None and forbidden[i, j]
                else _number(matrix[i, j], darkest)
                for j in range(len(columns or matrix[i]))
            ),
        )
    return table


def _number(number: float, darkest: float | None) -> Text:
    text = Text(f"{number:.4f}".rjust(8))
    if darkest is not None:
        level = max(number, 0.0) / darkest * (len(_SCALE) - 1)
        low = min(int(level), len(_SCALE) - 2)
        pairs = zip(_SCALE[low], _SCALE[low + 1], strict=True)
        red, green, blue = (round(a + (b - a) * (level - low)) for a, b in pairs)
        text_color = "#000000" if 0.3 * red + 0.6 * green + 0.1 * blue > 110 else "#ffffff"
        text.stylize(f"{text_color} on rgb({red},{green},{blue})")
    return text
