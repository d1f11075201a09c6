"""The report of a comparison: an HTML page with plots, Markdown and JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from headway.bench import pages
from headway.bench.pages import COLOURS, INK, MARKS, Picture
from headway.lab import comparison as comparisons
from headway.lab.comparison import COLUMNS, LEGEND, Comparison, TrainedRun
from headway.lab.experiments import Variant
from headway.lab.health import entropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = """
.answers li { color: inherit; font-size: 1rem; margin: .3rem 0 }
td:first-child, th:first-child { text-align: left; font-weight: 600 }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem } .samples img { width: 100%; background: #fff; border-radius: 4px }
pre { white-space: pre-wrap; font-size: .8rem; max-height: 12rem; overflow: auto; margin: .3rem 0;
  border-left: 3px solid var(--line); padding-left: .7rem }
code { font-size: .9rem }
"""

# The plots of the training health: key and label.
DRAWN = {
    "entropy": "entropy of the attention weights (1 = equal weights)",
    "largest": "largest score",
    "first": "weight of the first token",
    "query_gradient": "gradient norm of W_query",
}


class Summary(NamedTuple):
    """The text of a report. rows: the table, its header first. legend: explains the table."""

    title: str
    about: str
    answers: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str
    command: str


def as_markdown(summary: Summary, more: str = "") -> str:
    """Return the report as Markdown. more: text after the table."""

    def safe(text: str) -> str:
        return text.replace("<", "&lt;").replace("|", "\\|")

    header, *body = summary.rows
    table = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    parts = [
        f"# {safe(summary.title)}",
        f"{safe(summary.about)}.",
        "\n".join(f"- {safe(answer)}" for answer in summary.answers),
        "\n".join(f"| {' | '.join(map(safe, row))} |" for row in table),
        summary.legend,
        more,
        f"Repeat with: `{summary.command}`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_html(summary: Summary, plots: Iterable[Picture], more: str) -> str:
    """Return the report as a page. more: HTML after the plots."""
    header, *body = summary.rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in body
    )
    text = (
        f"<h1>{escape(summary.title)}</h1>\n<p class=soft>{escape(summary.about)}</p>\n"
        f"<ul class=answers>{''.join(f'<li>{escape(a)}</li>' for a in summary.answers)}</ul>\n"
        f"<div class=wide><table><tr>{head}</tr>\n{rows}</table></div>\n"
        f"<p class=soft>{escape(summary.legend)}</p>\n"
        f"<div class=plots>{''.join(pages.inline(plot.svg) for plot in plots)}</div>\n{more}\n"
        f"<h2>Repeat with</h2>\n<pre><code>{escape(summary.command)}</code></pre>"
    )
    return pages.page(f"headway: {summary.title}", text, STYLE)


def embedded(picture: Picture, style: str = "") -> str:
    """Return a picture as an HTML element that contains its PNG."""
    data = base64.b64encode(picture.png).decode()
    return f'<img alt="{escape(picture.name)}" style="{style}" src="data:image/png;base64,{data}">'


def _sample(report: Comparison, variant: Variant) -> str:
    result = next((run.result for run in report.of(variant) if run.result), None)
    if not result:
        return ""
    maps = _maps(f"attention maps of {variant.name}", result)
    style = f"max-width: {9 * max(map(len, result['maps']))}rem"
    return (
        f"<div><b>{escape(variant.name)}</b><pre>{escape(result['sample'])}</pre>"
        f"{embedded(maps, style)}</div>\n"
    )


def pictures(report: Comparison) -> Iterator[Picture]:
    """Yield plots of the loss and of the training health."""
    shown = [v for v in report.experiment.variants if any(r.curve for r in report.of(v))]
    colours = {
        variant.name: INK if index == 0 else [*COLOURS][(index - 1) % len(COLOURS)]
        for index, variant in enumerate(shown)
    }
    losses = {v.name: [dict(run.curve) for run in report.of(v) if run.curve] for v in shown}
    ranked = [variant.name for variant in shown if not variant.apart]
    if losses:
        yield curves("loss", "validation loss, nats per token", losses, colours, ranked)
    for key, label in DRAWN.items():
        series = {v.name: [*_health(report.of(v), key)] for v in shown}
        series = {name: of_seeds for name, of_seeds in series.items() if any(of_seeds)}
        if series:
            yield curves(key, label, series, colours)


def _health(runs: Sequence[TrainedRun], key: str) -> Iterator[dict[int, float]]:
    """Yield, for each run, the mean over layers and heads (for scores: the maximum) by step."""
    reduce = np.max if key == "largest" else np.mean
    for run in runs:
        yield {line["step"]: float(reduce(line[key])) for line in run.health if line[key]}


def curves(
    name: str,
    label: str,
    series: Mapping[str, Sequence[Mapping[int, float]]],
    colours: Mapping[str, str],
    framed: Sequence[str] = (),
    along: str = "steps",
) -> Picture:
    """Plot means over the seeds, with a band from minimum to maximum.

    series: per variant, one curve per seed. along: the label of the horizontal axis. framed: the
    series that determine the limits of the axes; the others may leave them.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.085, 0.115, 0.66, 0.79), facecolor="none")
        ends: dict[str, tuple[float, float]] = {}
        for index, (variant, seeds) in enumerate(series.items()):
            steps = sorted({step for curve in seeds for step in curve})
            values = [[curve[step] for curve in seeds if step in curve] for step in steps]
            low, high = [min(row) for row in values], [max(row) for row in values]
            means = [mean(row) for row in values]
            colour = colours[variant]
            mark = MARKS[index // (len(COLOURS) + 1) % len(MARKS)]
            apart = bool(framed) and variant not in framed
            if not apart:
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
            line = (0, (4, 2)) if apart else "-"
            axes.plot(steps, means, ls=line, color=colour, lw=1.5, marker=mark, markersize=3)
            ends[variant] = (steps[-1], means[-1])
        pages.bare(axes)
        _limits(axes, [series[variant] for variant in framed])
        bottom, top = axes.get_ylim()
        inside = {name: (step, min(max(y, bottom), top)) for name, (step, y) in ends.items()}
        axes.set_xlabel(along)
        axes.locator_params(axis="x", integer=True)
        figure.text(0.085, 0.94, label, size=12, weight="bold")
        pages.labels(axes, inside, dict(colours))

    return pages.draw(name, (9, 5.2), paint)


def _limits(axes: Axes, framed: Sequence[Sequence[Mapping[int, float]]]) -> None:
    """Limit the axis to later steps, because the first losses are much larger."""
    late = [
        value
        for seeds in framed
        for curve in seeds
        for step, value in curve.items()
        if step >= max(curve) / 4
    ]
    if late:
        margin = 0.05 * (max(late) - min(late) or 1)
        axes.set_ylim(min(late) - margin, max(late) + margin)


def _maps(name: str, result: Mapping[str, Any]) -> Picture:
    """Draw the attention weights of all heads on one text."""

    layers, columns = result["maps"], max(map(len, result["maps"]))
    words = [word.replace(" ", "␣").replace("\n", "⏎") for word in result["words"]]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(layers), columns, squeeze=False)
        for row, layer in zip(grid, layers, strict=True):
            for axes in row:
                axes.set_axis_off()
            for axes, weights in zip(row, layer, strict=False):
                axes.set_axis_on()
                axes.set_title(_title(np.array(weights)), size=5.5, pad=2)
                axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
        grid[0][0].set_yticks(range(len(words)), words, size=5)
        figure.subplots_adjust(0.06, 0.02, 0.99, 0.95, 0.06, 0.12)

    return pages.draw(name, (1.6 * columns, 1.6 * len(layers)), paint)


def _title(weights: Float[np.ndarray, "tokens tokens"]) -> str:
    """Describe the weights of a head in a few words."""
    causal = not np.triu(weights, 1).any()
    share = entropy(weights[None, None], causal)[0]
    return f"entropy {share:.2f}, first token {weights[1:, 0].mean():.0%}"


def summarize(report: Comparison) -> Summary:
    """Return the text of the report."""
    rows = [["variant", *(column.title for column in COLUMNS), "by seed"]]
    for variant in report.ranked:
        values = comparisons.record(report, variant)
        by_seed = " ".join(f"{loss:.3f}" for loss in report.losses[variant.name].values())
        cells = [comparisons.cell(column, values) for column in COLUMNS]
        rows.append([variant.name, *cells, by_seed])
    about = f"{report.experiment.name}: {comparisons.described(report)}"
    answers = comparisons.answers(report)
    return Summary(report.experiment.question, about, answers, rows, LEGEND, report.command)


def write(report: Comparison, folder: Path) -> Path:
    """Write index.html, report.md, report.json and the plots; return their folder."""
    target = folder / report.experiment.folder
    plots = [*pictures(report)]
    samples = (
        "<h2>Samples and attention maps</h2>\n"
        "<p class=soft>Of the first finished run. Rows are queries, columns are keys, darker cells "
        "are larger weights; one row of maps per layer.</p>\n"
        f"<div class=samples>{''.join(_sample(report, v) for v in report.ranked)}</div>"
    )
    texts = {
        "index.html": as_html(summarize(report), plots, samples),
        "report.md": as_markdown(summarize(report)),
        "report.json": json.dumps(comparisons.as_dict(report), allow_nan=False) + "\n",
    }
    pages.write(target, texts, plots)
    return target
