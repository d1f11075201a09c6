"""What the race showed: score against depth and length, with bands, and where the models looked."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from html import escape
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.bench import pages
from headway.bench.pages import COLOURS, INK, Picture
from headway.lab import translation as lab
from headway.lab import work
from headway.lab.effects import Effect, effect_of
from headway.lab.page import STYLE, curves
from headway.lab.race import KINDS, QUESTION, SEEDS, SENTENCE, Race
from headway.lab.translation import Answer, Scores
from headway.training.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND = (
    "Means over the seeds, of exact with the least and the most; all seeds are asked the same "
    "sentences, so chance in their choice is in no band. Better and worse are shares of the "
    "sentences that are not right to the letter. The budget is the same number of steps on the "
    "same batches; the Transformer's learning rate is its own. AER: the alignment error rate, with "
    "the right target given. Words count commas and stops."
)
PAIRED = (("bahdanau", "rnn"), ("transformer", "bahdanau"))
_COLOURS = dict(zip(KINDS, (INK, *COLOURS), strict=False))


@dataclass(frozen=True)
class RaceRun:
    """A run of the race. result: None until it has come to its end. failed: why it will not."""

    kind: str
    seed: int
    curve: Mapping[int, float]
    seconds: float
    result: Mapping[str, Any] | None
    failed: str

    @cached_property
    def answers(self) -> list[Answer]:
        """What it said in the test."""
        return [] if self.result is None else [*map(lab.from_dict, self.result["answers"])]


@dataclass(frozen=True, eq=False)
class RaceReport:
    """What is known of a race. command: which repeats it."""

    race: Race
    runs: Sequence[RaceRun]
    command: str

    def of(self, kind: str) -> list[RaceRun]:
        """The runs of a kind that have ended."""
        return [run for run in self.runs if run.kind == kind and run.result is not None]

    @cache  # noqa: B019 - a report lives as long as its command
    def table(
        self, groups: Callable[[Sequence[Answer]], Mapping[str, list[Answer]]]
    ) -> dict[str, dict[str, dict[int, Scores]]]:
        """kind -> group -> seed -> scores."""
        found: dict[str, dict[str, dict[int, Scores]]] = {}
        for kind in KINDS:
            for run in self.of(kind):
                for name, some in groups(run.answers).items():
                    place = found.setdefault(kind, {}).setdefault(name, {})
                    place[run.seed] = lab.scores(some)
        return found


def gather(race: Race, folder: Path, wrong: Mapping[str, str] | None = None) -> list[RaceRun]:
    """How far every run of a race is. wrong: what `work.run` said of some."""
    found = []
    for job in race.jobs:
        path = folder / job.folder
        log = Run(path).logged()
        shown = [line for line in log if isfinite(line["validation"] or nan)]
        curve = {line["step"]: line["validation"] for line in shown}
        result = failed = None
        if (path / work.RESULT).is_file():
            result = json.loads((path / work.RESULT).read_text(encoding="utf-8"))
        if (path / work.FAILED).is_file():
            failed = json.loads((path / work.FAILED).read_text(encoding="utf-8"))["failed"]
        seconds = log[-1]["seconds"] if log else 0.0
        said = failed or (wrong or {}).get(job.folder, "")
        found.append(RaceRun(job.variant, job.seed, curve, seconds, result, said))
    return found


def answers(report: RaceReport) -> Iterator[str]:
    """The answer in sentences, each with how sure it is."""
    planned = SEEDS[report.race.size]
    by_depth = report.table(lab.by_depth) or {}
    learnt = _learnt(report.race)
    for name in _groups(by_depth):
        exact = ", ".join(
            f"{kind} {_spread([s.exact for s in by_depth[kind][name].values()])}"
            for kind in KINDS
            if name in by_depth.get(kind, {})
        )
        beyond = "" if int(name.split()[1]) <= learnt else ", deeper than any it learnt from"
        yield f"{name}{beyond}: right to the letter {exact}"
        yield from map(str, _findings(by_depth, name, planned))
    if not by_depth:
        everything = report.table(_all)
        for kind, groups in everything.items():
            bleus = [each.bleu for each in groups["all"].values()]
            yield f"{kind}: BLEU {mean(bleus):.1f} ({min(bleus):.1f} to {max(bleus):.1f})"
        yield from map(str, _findings(everything, "all", planned))
    for run in report.runs:
        if run.failed:
            yield f"{run.kind}, seed {run.seed}, failed: {run.failed}"
        if run.result is None:
            continue
        counts = {
            "pairs longer than the model were left out of the training": run.result["left_out"],
            "test sentences longer than the model were not asked": run.result["longer"],
            "translations had not ended, and count as cut": sum(not a.whole for a in run.answers),
        }
        for said, count in counts.items():
            if count:
                yield f"{run.kind}, seed {run.seed}: {count:,} {said}"


def _findings(
    table: Mapping[str, Mapping[str, Mapping[int, Scores]]], name: str, planned: int
) -> Iterator[Effect]:
    """Which kind has fewer mistakes, paired by seed."""
    mistakes = {
        kind: {seed: 1 - each.exact for seed, each in groups.get(name, {}).items()}
        for kind, groups in table.items()
    }
    for one, other in PAIRED:
        if mistakes.get(one) or mistakes.get(other):
            yield effect_of(one, other, mistakes, planned, "of the sentences")


def _all(some: Sequence[Answer]) -> dict[str, list[Answer]]:
    return {"all": [*some]}


def _groups(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [*dict.fromkeys(name for groups in table.values() for name in groups)]


def _learnt(race: Race) -> int:
    from headway.data import pairs

    return pairs.depth_of(race.source) if pairs.is_grammar(race.source) else 0


def _spread(shares: Sequence[float]) -> str:
    return f"{mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def rows(report: RaceReport) -> Iterator[list[str]]:
    """The table: a header, then a row for each kind and group of sentences."""
    yield ["sentences of", "model", "seeds", "exact", "BLEU", "chrF", "tokens right", "AER"]
    for groups in (_all, lab.by_depth, lab.by_length):
        table = report.table(groups)
        for name in _groups(table):
            for kind in KINDS:
                seeds = [*table.get(kind, {}).get(name, {}).values()]
                if seeds:
                    known = [each.aer for each in seeds if each.aer is not None]
                    yield [
                        name,
                        kind,
                        str(len(seeds)),
                        _spread([each.exact for each in seeds]),
                        f"{mean(each.bleu for each in seeds):.1f}",
                        f"{mean(each.chrf for each in seeds):.1f}",
                        f"{mean(each.tokens for each in seeds):.1%}",
                        f"{mean(known):.1%}" if known else "-",
                    ]


def described(report: RaceReport) -> str:
    """What was done, in a line."""
    done = [run for run in report.runs if run.result is not None]
    sizes = {run.kind: run.result["parameters"] for run in done if run.result}
    settings = report.race.settings
    each = ", ".join(
        f"{kind} {sizes[kind]:,} parameters, width {settings[kind]['width']}, "
        f"{mean(run.seconds for run in report.of(kind)):,.0f} s"
        for kind in KINDS
        if kind in sizes
    )
    steps = settings[KINDS[0]]["steps"]
    machine = done[0].result["machine"] if done and done[0].result else {}
    where = (
        f"; {machine.get('processor', '')}, PyTorch {machine.get('torch', '')}" if machine else ""
    )
    return f"{report.race.source}, {steps:,} steps, {SEEDS[report.race.size]} seeds: {each}{where}"


def pictures(report: RaceReport) -> Iterator[Picture]:
    """Score against depth and length, the loss, and the alignments of SENTENCE."""
    axes: tuple[tuple[str, str, Any, Callable[[str], int]], ...] = (
        ("depth", "clauses between subject and verb", lab.by_depth, lambda n: int(n.split()[1])),
        ("length", "words of the source, at most", lab.by_length, _longest),
    )
    shown: tuple[tuple[str, str, Callable[[Scores], float]], ...] = (
        ("exact", "right to the letter, % of the sentences", lambda found: 100 * found.exact),
        ("bleu", "BLEU", lambda found: found.bleu),
    )
    for name, along, groups, place in axes:
        table = report.table(groups)
        for score, label, of in shown:
            series = {
                kind: [
                    {place(group): of(by_seed[seed]) for group, by_seed in table[kind].items()}
                    for seed in next(iter(table[kind].values()))
                ]
                for kind in table
                if table[kind]
            }
            if series:
                yield curves(f"{name}-{score}", label, series, _COLOURS, along=along)
    losses = {kind: [run.curve for run in report.of(kind)] for kind in KINDS if report.of(kind)}
    if losses:
        label = "loss on held-out pairs, nats a token"
        yield curves("loss", label, losses, _COLOURS, framed=[*losses])
    for kind in KINDS:
        first = next((run for run in report.of(kind) if run.result and run.result["matrix"]), None)
        if first is not None and first.result is not None:
            yield alignment(f"alignment-{kind}", kind, first.result["matrix"])


def _longest(name: str) -> int:
    """The most words of a group; of the last, which has no end, ten more than its beginning."""
    numbers = [int(word) for word in name.split() if word.isdigit()]
    return numbers[1] if len(numbers) > 1 else numbers[0] + 10


def alignment(name: str, title: str, matrix: Mapping[str, Any]) -> Picture:
    """Where each word of the target looked."""
    weights = np.array(matrix["weights"])

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((1.3 / wide, 0.1 / high, 1 - 1.5 / wide, 1 - 1.3 / high))
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(matrix["source"])), matrix["source"], rotation=60, ha="left")
        axes.set_yticks(range(len(matrix["target"])), matrix["target"])
        axes.tick_params(length=0)
        figure.text(0.1 / wide, 1 - 0.3 / high, title, size=12, weight="bold")

    high, wide = 1.4 + 0.27 * len(matrix["target"]), 1.5 + 0.36 * len(matrix["source"])
    return pages.draw(name, (wide, high), paint)


def markdown(report: RaceReport) -> str:
    """The report as text."""
    header, *body = rows(report)
    lines = [f"# {QUESTION}", "", described(report) + ".", "", *(f"- {a}" for a in answers(report))]
    lines += ["", f"| {' | '.join(header)} |", f"|---|---|{'---:|' * (len(header) - 2)}"]
    lines += [f"| {' | '.join(row)} |" for row in body]
    lines += ["", f"`{SENTENCE}`", ""]
    lines += [f"- {kind}: {said}" for kind, said in _sentences(report)]
    lines += ["", LEGEND]
    return "\n".join([*lines, "", "```", report.command, "```", ""])


def _sentences(report: RaceReport) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        for run in report.of(kind)[:1]:
            if run.result is not None:
                yield kind, run.result["sentence"]


def page(report: RaceReport, drawn: Sequence[Picture]) -> str:
    """The report as one HTML page."""
    header, *body = rows(report)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    table = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    plots = "".join(pages.inline(e.svg) for e in drawn if not e.name.startswith("alignment"))
    maps = "".join(
        f'<img alt="{escape(each.name)}" src="data:image/png;base64,'
        f'{base64.b64encode(each.png).decode()}">'
        for each in drawn
        if each.name.startswith("alignment")
    )
    said = "".join(f"<dt>{kind}</dt><dd>{escape(text)}</dd>" for kind, text in _sentences(report))
    text = (
        f"<h1>{escape(QUESTION)}</h1>\n<p class=soft>{escape(described(report))}</p>\n"
        f"<ul class=answers>{''.join(f'<li>{escape(a)}</li>' for a in answers(report))}</ul>\n"
        f"<div class=plots>{plots}</div>\n"
        f"<h2>Where they look</h2>\n<p>{escape(SENTENCE)}</p><dl>{said}</dl>\n"
        "<p class=soft>A row is a word that was written, a column one that was read; darker is "
        f"more weight.</p>\n<div class=samples>{maps}</div>\n"
        f"<h2>All scores</h2>\n<div class=wide><table><tr>{head}</tr>\n{table}</table></div>\n"
        f"<p class=soft>{escape(LEGEND)}</p>\n"
        f"<h2>Again</h2>\n<pre><code>{escape(report.command)}</code></pre>"
    )
    return pages.page("headway: the race", text, STYLE)


def write(report: RaceReport, folder: Path) -> Path:
    """Write index.html, report.md, report.json and the plots; return their folder."""
    target = folder / report.race.folder
    plots = [*pictures(report)]
    content = {
        "race": {"source": report.race.source, "settings": report.race.settings},
        "command": report.command,
        "answers": [*answers(report)],
        "rows": [*rows(report)],
        "runs": [
            {"kind": run.kind, "seed": run.seed, "curve": run.curve, "failed": run.failed}
            for run in report.runs
        ],
    }
    texts = {
        "index.html": page(report, plots),
        "report.md": markdown(report),
        "report.json": json.dumps(content, allow_nan=False) + "\n",
    }
    pages.write(target, texts, plots)
    return target
