"""What the lab measured, as the guide shows it: curves of all seeds, and what the report concludes.

`python -m headway.learn.measured` extracts the reports `docs/lab/*/report.json` of a checkout into
the folder `measured`, which is part of the package.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from headway.bench.pages import COLOURS

FOLDER = Path(__file__).with_name("measured")
REPORTS = Path(__file__).parents[3] / "docs" / "lab"  # in a checkout
# What can be drawn: the label, and whether the axis is logarithmic.
LABELS = {
    "validation": ("validation loss, nats per token", False),
    "entropy": ("entropy of the attention weights, 1 = equal weights", False),
    "largest": ("largest score", True),
    "first": ("weight of the first token", False),
    "query_gradient": ("gradient norm of W_query", True),
}
HEIGHT, LINE = 280, 15.5  # pixels: the least height of a picture, and of a line of a label
LETTERS = 16  # of a line of a label
WORDS = {
    "token": "A piece of text that the model reads as one: in these experiments, a character.",
    "step": "One change of all the numbers of the model by the training.",
    "validation loss": "How badly the model guesses the next token of a text that it has not "
    "trained on: minus the natural logarithm of the probability that it gave to the right token, "
    "as a mean. The unit is called nat. Lower is better: 0.1 nats less are a probability that is "
    "10 % higher.",
    "seed": "The number from which everything random in a training follows, such as the first "
    "numbers of the model. Each seed is one training.",
    "tendency": "All seeds agree, but there are fewer than five of them, too few for a claim.",
}
MOST = 10  # lines; a picture with more seeds has a mean and a band per variant

Curves = dict[str, list[list[float]]]  # by seed: pairs of a step and a value
Options = Mapping[str, Any]


def extracted(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the guide needs of a report of `headway compare`, `climb` or `translate race`.

    variants: the curves by name, by what was measured, by seed. effects: the comparisons of two
    variants, with the sentence of the report, the seeds, and the `others` that repeated them.
    remarks: its other sentences.
    """
    answers, effects = report["answers"], report.get("effects", [])
    others = (report.get("replication") or {}).get("effects", [None] * len(effects))
    runs = {
        variant["name"]: [(run["seed"], run) for run in variant["runs"]]
        for variant in report.get("variants", [])
    }
    for run in report.get("runs", []):  # of a race
        runs.setdefault(run["kind"], []).append((run["seed"], run))
    return {
        "question": report.get("question", ""),
        "command": report["command"],
        "budget": _budget(report, max(map(len, runs.values()))),
        "effects": [
            {
                **{key: effect[key] for key in ("variant", "against", "claim", "mean")},
                "seeds": len(effect["differences"]),
                "others": len(other["differences"]) if other else 0,
                "confirmed": bool(other) and other["claim"] == effect["claim"],
                "sentence": sentence,
            }
            for effect, other, sentence in zip(effects, others, answers, strict=False)
        ],
        "remarks": answers[len(effects) :],
        "variants": {name: _curves(of_seeds) for name, of_seeds in runs.items()},
    }


def _budget(report: Mapping[str, Any], seeds: int) -> str:
    if "race" in report:
        settings, text = report["race"]["settings"].values(), report["race"]["source"]
        budgets = {f"{one['steps']:,} steps" for one in settings}
    else:
        settings = [variant["settings"] for variant in report["variants"]]
        text = " and ".join(sorted({str(one["text"]) for one in settings}))
        tokens = {
            (one["training"]["steps"], one["training"]["batch"] * one["model"]["context"])
            for one in settings
        }
        budgets = {f"{steps:,} steps of {many:,} tokens" for steps, many in tokens}
    return f"{seeds} seeds, {' or '.join(sorted(budgets))} of {text}"


def _curves(runs: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Curves]:
    curves: dict[str, Curves] = {}
    for seed, run in runs:
        curve = run["curve"]
        points = curve.items() if isinstance(curve, dict) else curve
        _add(curves, "validation", seed, [[int(step), loss] for step, loss in points])
        for key in ("entropy", "largest", "first", "query_gradient"):
            reduce = max if key == "largest" else mean
            lines = [line for line in run.get("health", []) if line[key]]
            _add(curves, key, seed, [[line["step"], reduce(_flat(line[key]))] for line in lines])
    return curves


def _add(curves: dict[str, Curves], what: str, seed: int, points: list[list[float]]) -> None:
    if points:
        rounded = [[step, float(f"{value:.5g}")] for step, value in points]
        curves.setdefault(what, {})[str(seed)] = rounded


def _flat(numbers: Any) -> Iterator[float]:
    """Yield the numbers of a list of layers, which may be lists of heads."""
    for one in numbers:
        yield from _flat(one) if isinstance(one, list) else [one]


@cache
def report(name: str) -> dict[str, Any]:
    """Return the extract of a report. Raises ValueError if it does not exist."""
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise ValueError(f"unknown report {name!r}; known: {known}")
    extract: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return extract


def drawn(options: Options) -> str:
    """Return the curves of a report and what it concludes as HTML.

    options: `report`, optional `variants` (by default all), `labels` (names for people, in the
    order of the variants), `what` (a key of LABELS; "none" draws no curves) and `sentences`, the
    beginnings of sentences to show (by default those that compare two of the variants). Raises
    ValueError if something is unknown.
    """
    extract = report(options["report"])
    chosen = options.get("variants", [*extract["variants"]])
    for name in chosen:
        if name not in extract["variants"]:
            known = "; ".join(extract["variants"])
            raise ValueError(f"unknown variant {name!r} of {options['report']!r}; known: {known}")
    shared, labels = _labels(chosen, options.get("labels"))
    effects, remarks = _sentences(extract, options, chosen)
    plain = [_plain(effect, labels) for effect in effects] + [f"{escape(one)}." for one in remarks]
    exact = [escape(_unsigned(effect["sentence"])) for effect in effects]
    what = options.get("what", "validation")
    return (
        '<figure class="measured">\n'
        + ("" if what == "none" else _plot(extract, labels, shared, what))
        + _list(plain)
        + (f"<details><summary>The numbers</summary>\n{_list(exact)}</details>\n" * bool(exact))
        + ("" if what == "none" else _words())
        + f"<figcaption>Measured: {escape(extract['budget'])}. Again: "
        f"<code>{escape(extract['command'])}</code></figcaption>\n</figure>\n"
    )


def _words() -> str:
    words = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>\n" for word, meaning in WORDS.items())
    return f"<details><summary>What the words mean</summary>\n<dl>{words}</dl></details>\n"


def _labels(chosen: Sequence[str], labels: Sequence[str] | None) -> tuple[str, dict[str, str]]:
    """Return what all names share, and how each is called in the picture and in sentences."""
    if labels is None:
        return _shortened(chosen)
    if len(labels) != len(chosen):
        raise ValueError(f"{len(chosen)} variants must have as many labels, not {len(labels)}")
    return "", dict(zip(chosen, labels, strict=True))


def _list(items: Sequence[str]) -> str:
    lines = "".join(f"<li>{item}</li>\n" for item in items)
    return f"<ul>\n{lines}</ul>\n" if items else ""


def _plain(effect: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Return a comparison in the words of the guide."""
    new, old = (
        f"<em>{escape(labels.get(effect[key], effect[key]))}</em>" for key in ("variant", "against")
    )
    claim, seeds = effect["claim"], f"{effect['seeds']} seeds"
    size = f"{'lower' if effect['mean'] < 0 else 'higher'} by {abs(effect['mean']):.3f}"
    if claim == "tendency":
        return f"With {new} the loss is {size} than with {old} (a tendency in {seeds})."
    if effect["others"] and claim != "undecided":
        verdict = "confirmed" if effect["confirmed"] else "not confirmed"
        seeds += f", {verdict} by {effect['others']} others"
    if claim in ("better", "worse"):
        return f"With {new} the loss is {size} than with {old} ({seeds})."
    return f"Between {new} and {old} there is no clear difference ({seeds})."


def _unsigned(sentence: str) -> str:
    """Return a sentence of a report with differences as sizes: lower by 0.011 to 0.037."""

    def sizes(match: re.Match[str]) -> str:
        side = {"better": "lower", "worse": "higher"}[match[1]]
        low, high = sorted(match.group(4, 5), key=lambda one: abs(float(one)))
        return f"{side} by {match[2]} ({match[3]} interval {low[1:]} to {high[1:]}"

    return re.sub(
        r"(better|worse) by ([\d.]+ [\w ]+) \((\d+%) interval ([-+][\d.]+) to ([-+][\d.]+)",
        sizes,
        sentence,
    )


def _sentences(
    extract: Mapping[str, Any], options: Options, chosen: Sequence[str]
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the comparisons and the remarks to show."""
    if "sentences" not in options:
        effects = [
            effect
            for effect in extract["effects"]
            if {effect["variant"], effect["against"]} <= {*chosen}
        ]
        if not effects and extract["effects"]:
            raise ValueError(f"{options['report']!r} does not compare {' with '.join(chosen)}")
        return effects, []
    effects, remarks = [], []
    for beginning in options["sentences"]:
        of_effects = [e for e in extract["effects"] if e["sentence"].startswith(beginning)]
        of_remarks = [one for one in extract["remarks"] if one.startswith(beginning)]
        if not of_effects and not of_remarks:
            raise ValueError(f"{options['report']!r} has no sentence that begins {beginning!r}")
        effects += of_effects
        remarks += of_remarks
    return effects, remarks


def _plot(extract: Mapping[str, Any], short: Mapping[str, str], shared: str, what: str) -> str:
    """Return three pictures side by side: the axis, the curves, and their labels.

    short: how the variants are called. shared: what is true of all of them. The curves are
    stretched to the width of the page and the texts are not, without a script.
    """
    if what not in LABELS:
        raise ValueError(f"unknown curve {what!r}; known: {', '.join(LABELS)}, none")
    chosen = [*short]
    curves = {name: extract["variants"][name].get(what, {}) for name in chosen}
    empty = [name for name, seeds in curves.items() if not seeds]
    if empty:
        raise ValueError(f"{extract['command']!r} did not record {what!r} of {empty[0]!r}")
    label, logarithmic = LABELS[what]
    points = [point for seeds in curves.values() for line in seeds.values() for point in line]
    last = max(step for step, _ in points)
    scale = math.log10 if logarithmic else float
    values = [scale(value) for _, value in points]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low or 1)
    low, high = low - margin, high + margin

    def height(value: float) -> float:
        return round(1 - (scale(value) - low) / (high - low), 4)

    marks = _ticks(low, high, logarithmic)
    axis = "".join(
        f'<text x="100%" y="{height(mark):.1%}" dy=".35em" text-anchor="end">{_short(mark)}</text>'
        for mark in marks
    )
    grid = "".join(f'<path class="grid" d="M0 {height(mark)}H1"/>' for mark in marks)
    many = sum(map(len, curves.values())) > MOST

    def path(points: Sequence[Sequence[float]]) -> str:
        return "M" + "L".join(f"{step / last:.4f} {height(value)}" for step, value in points)

    bands, lines, ends = "", "", {}
    for name, seeds in curves.items():
        colour, of_seeds = _colour(chosen.index(name)), [*seeds.values()]
        ends[name] = mean(points[-1][1] for points in of_seeds)
        if many:
            lowest, middle, highest = (_at_each_step(of_seeds, of) for of in (min, mean, max))
            outline = path([*lowest, *reversed(highest)])
            bands += f'<path class="band" d="{outline}Z" fill="{colour}"/>'
            of_seeds = [middle]
        lines += "".join(f'<path d="{path(line)}" stroke="{colour}"/>' for line in of_seeds)
    pixels = {name: LINE * (len(_wrapped(short[name])) + 1.2) for name in chosen}
    tall = max(HEIGHT, math.ceil(sum(pixels.values())))
    sizes = {name: size / tall for name, size in pixels.items()}
    labels = "".join(
        _label(short[name], f"{ends[name]:#.3g}", at, _colour(chosen.index(name)))
        for name, at in _apart({name: height(end) for name, end in ends.items()}, sizes).items()
    )
    heading = f"{label}{f' ({shared})' if shared else ''}"
    note = "<small>mean, and band from the lowest to the highest seed</small>" if many else ""
    return (
        f"<h3>{escape(heading[0].upper() + heading[1:])} {note}</h3>\n"
        f'<div class="plot" role="img" aria-label="{escape(heading)} by step">'
        f'<svg class="levels" height="{tall}">{axis}</svg>'
        f'<svg class="curves" height="{tall}" viewBox="0 0 1 1" preserveAspectRatio="none">'
        f"{grid}{bands}{lines}</svg>"
        f'<svg class="labels" height="{tall}">{labels}</svg>'
        f'<p class="steps"><span>0</span><span>steps</span><span>{last:,}</span></p></div>\n'
    )


def _at_each_step(
    curves: Sequence[Sequence[Sequence[float]]], of: Callable[[Iterable[float]], float]
) -> list[tuple[float, float]]:
    """Return one curve of several, which have the same steps."""
    return [
        (points[0][0], of(value for _, value in points)) for points in zip(*curves, strict=True)
    ]


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Return about four round numbers; low and high are logarithms if the axis is logarithmic."""
    if logarithmic and high - low > 1:
        powers = range(math.floor(low), math.ceil(high) + 1)
        factors = (1,) if high - low > 3 else (1, 3)
        values = [factor * 10.0**power for power in powers for factor in factors]
        return [value for value in values if low < math.log10(value) < high]
    if logarithmic:
        low, high = 10**low, 10**high
    least = (high - low) / 5
    power = 10 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _shortened(names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the parts (between commas) that all names have, and the other parts of each name."""
    parts = [name.split(", ") for name in names]
    shared = [part for part in parts[0] if all(part in one for one in parts)] if parts else []
    if len(names) < 2 or any(len(one) == len(shared) for one in parts):
        return "", dict(zip(names, names, strict=True))
    short = [", ".join(part for part in one if part not in shared) for one in parts]
    return ", ".join(shared), dict(zip(names, short, strict=True))


def _apart(heights: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, float]:
    """Move labels away from each other, within the picture. Return their centres."""
    names = sorted(heights, key=lambda name: heights[name])
    tops: list[float] = []
    for name in names:
        least = tops[-1] + sizes[names[len(tops) - 1]] if tops else 0.0
        tops.append(max(heights[name] - sizes[name] / 2, least))
    most = 1.0
    for i in reversed(range(len(names))):  # the last ones may be too low
        tops[i] = min(tops[i], most - sizes[names[i]])
        most = tops[i]
    return {name: top + sizes[name] / 2 for name, top in zip(names, tops, strict=True)}


def _label(name: str, value: str, at: float, colour: str) -> str:
    first, *others = _wrapped(name)
    up = 0.35 - 0.575 * (1 + len(others))  # so that all lines together are centred
    spans = f'<tspan x="0" dy="{up:.3g}em">{escape(first)}</tspan>'
    spans += "".join(f'<tspan x="0" dy="1.15em">{escape(line)}</tspan>' for line in others)
    spans += f'<tspan x="0" dy="1.15em" class="value">{value}</tspan>'
    return f'<text y="{at:.1%}" fill="{colour}">{spans}</text>'


def _wrapped(name: str) -> list[str]:
    return textwrap.wrap(name, LETTERS)


def _colour(index: int) -> str:
    """Return the colour of a variant, the first in that of text, for light and dark pages."""
    if index == 0:
        return "currentColor"
    light = [*COLOURS][(index - 1) % len(COLOURS)]
    return f"light-dark({light}, {COLOURS[light]})"


def _short(value: float) -> str:
    """Return three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for source in sorted(REPORTS.glob("*/report.json")):
        extract = extracted(json.loads(source.read_text(encoding="utf-8")))
        text = json.dumps(extract, indent=1)
        text = re.sub(
            r"\[\s+([-\d.e+]+),\s+([-\d.e+]+)\s+\]", r"[\1, \2]", text
        )  # one point, one line
        (FOLDER / f"{source.parent.name}.json").write_text(text + "\n", encoding="utf-8")
