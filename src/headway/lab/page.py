"""The report of a comparison: an HTML page with plots, Markdown and JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

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
.apart { opacity: .6 }
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


def page(report: Comparison, drawn: Sequence[Picture]) -> str:
    """Return the page: answers, table, plots, and a sample and attention maps per variant."""
    answers = "".join(f"<li>{escape(answer)}</li>" for answer in comparisons.answers(report))
    head = "".join(f"<th>{escape(column.title)}</th>" for column in COLUMNS)
    rows = "\n".join(_row(report, variant) for variant in report.ranked)
    plots = "".join(pages.inline(picture.svg) for picture in drawn)
    samples = "".join(_sample(report, variant) for variant in report.ranked)
    body = (
        f"<h1>{escape(report.experiment.question)}</h1>\n"
        f"<p class=soft>{escape(report.experiment.name)}: "
        f"{escape(comparisons.described(report))}</p>\n"
        f"<ul class=answers>{answers}</ul>\n"
        f"<div class=wide><table><tr><th>variant</th>{head}<th>by seed</th></tr>\n{rows}</table>"
        f"</div>\n<p class=soft>{escape(LEGEND)}.</p>\n<div class=plots>{plots}</div>\n"
        "<h2>Samples and attention maps</h2>\n"
        "<p class=soft>Of the first finished run. Rows are queries, columns are keys, darker cells "
        "are larger weights; one row of maps per layer.</p>\n"
        f"<div class=samples>{samples}</div>\n"
        f"<h2>Repeat with</h2>\n<pre><code>{escape(report.command)}</code></pre>"
    )
    return pages.page(f"headway: {report.experiment.name}", body, STYLE)


def _row(report: Comparison, variant: Variant) -> str:
    row = comparisons.record(report, variant)
    cells = "".join(f"<td>{escape(comparisons.cell(column, row))}</td>" for column in COLUMNS)
    losses = report.losses[variant.name].values()
    seeds = " ".join(f"{loss:.3f}" for loss in losses)
    kind = ' class="apart"' if variant.apart else ""
    return f"<tr{kind}><td>{escape(variant.name)}</td>{cells}<td>{seeds}</td></tr>"


def _sample(report: Comparison, variant: Variant) -> str:
    first = next((run for run in report.of(variant) if run.result), None)
    if first is None or first.result is None:
        return ""
    picture = base64.b64encode(_maps(variant.name, first.result).png).decode()
    name, width = escape(variant.name), max(map(len, first.result["maps"]))
    return (
        f"<div><b>{name}</b><pre>{escape(first.result['sample'])}</pre>"
        f'<img alt="attention maps of {name}" style="max-width: {width * 9}rem" '
        f'src="data:image/png;base64,{picture}"></div>\n'
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

    def paint(figure: Figure) -> None:
        layers, words = result["maps"], [_visible(word) for word in result["words"]]
        grid = figure.subplots(len(layers), max(map(len, layers)), squeeze=False)
        for row, layer in zip(grid, layers, strict=True):
            for axes in row:
                axes.set_axis_off()
            for axes, weights in zip(row, layer, strict=False):
                axes.set_axis_on()
                axes.set_title(_title(np.array(weights)), size=5.5, pad=2)
                axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
        first = grid[0][0]
        first.set_yticks(range(len(words)), words, size=5)
        figure.subplots_adjust(0.06, 0.02, 0.99, 0.95, 0.06, 0.12)

    layers = result["maps"]
    columns = max(map(len, layers))
    return pages.draw(name, (1.6 * columns, 1.6 * len(layers)), paint)


def _title(weights: Float[np.ndarray, "tokens tokens"]) -> str:
    """Describe the weights of a head in a few words."""
    causal = not np.triu(weights, 1).any()
    share = entropy(weights[None, None], causal)[0]
    return f"entropy {share:.2f}, first token {weights[1:, 0].mean():.0%}"


def _visible(word: str) -> str:
    return word.replace(" ", "␣").replace("\n", "⏎")


def write(comparison: Comparison, folder: Path) -> Path:
    """Write index.html, report.md, report.json and the plots; return their folder."""
    target = folder / comparison.experiment.folder
    plots = [*pictures(comparison)]
    texts = {
        "index.html": page(comparison, plots),
        "report.md": comparisons.markdown(comparison),
        "report.json": json.dumps(comparisons.as_dict(comparison), allow_nan=False) + "\n",
    }
    pages.write(target, texts, plots)
    return target
