"""The report of a race: scores by depth and length, losses and alignments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.bench import pages
from headway.bench.pages import COLOURS, INK, Picture
from headway.lab import translation as lab
from headway.lab.comparison import TrainedRun
from headway.lab.effects import Effect, effect_of
from headway.lab.experiments import SEEDS
from headway.lab.page import Summary, as_html, as_markdown, curves, embedded
from headway.lab.race import KINDS, QUESTION, SENTENCE, Race
from headway.lab.translation import Answer, Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND = (
    "Means over the seeds; for exact also minimum and maximum. All seeds translate the same "
    "sentences, so the bands do not include their sampling error. Comparisons are about the "
    "fraction of sentences without an exact match. All models train for the same number of steps "
    "on the same batches; the Transformer has another learning rate. AER: alignment error rate, "
    "given the right target. Punctuation marks count as words."
)
PAIRED = (("bahdanau", "rnn"), ("transformer", "bahdanau"))
_COLOURS = dict(zip(KINDS, (INK, *COLOURS), strict=False))


@dataclass(frozen=True, eq=False)
class RaceReport:
    """The current state of a race. command: repeats it."""

    race: Race
    runs: Sequence[TrainedRun]
    command: str

    def of(self, kind: str) -> list[TrainedRun]:
        """Return the finished runs of a kind."""
        return [run for run in self.runs if run.job.variant == kind and run.result]

    @cache  # noqa: B019 - a report exists until its command ends
    def table(
        self, groups: Callable[[Sequence[Answer]], Mapping[str, list[Answer]]]
    ) -> dict[str, dict[str, dict[int, Scores]]]:
        """Return scores by kind, group and seed."""
        table: dict[str, dict[str, dict[int, Scores]]] = {}
        for kind in KINDS:
            for run in self.of(kind):
                for name, group in groups(answers_of(run)).items():
                    by_seed = table.setdefault(kind, {}).setdefault(name, {})
                    by_seed[run.job.seed] = lab.scores(group)
        return table


def answers_of(run: TrainedRun) -> list[Answer]:
    """Return the translations of a finished run."""
    return [*map(lab.from_dict, run.result["answers"])]


def answers(report: RaceReport) -> Iterator[str]:
    """Yield the results as sentences, with their evidence."""
    planned = SEEDS[report.race.size]
    by_depth = report.table(lab.by_depth)
    trained = _training_depth(report.race)
    for name in _groups(by_depth):
        exact = ", ".join(
            f"{kind} {_spread([s.exact for s in by_depth[kind][name].values()])}"
            for kind in KINDS
            if name in by_depth.get(kind, {})
        )
        beyond = "" if int(name.split()[1]) <= trained else ", deeper than the training data"
        yield f"{name}{beyond}: exact {exact}"
        yield from map(str, _effects(by_depth, name, planned))
    if not by_depth:
        everything = report.table(_all)
        for kind, groups in everything.items():
            bleus = [scores.bleu for scores in groups["all"].values()]
            yield f"{kind}: BLEU {mean(bleus):.1f} ({min(bleus):.1f} to {max(bleus):.1f})"
        yield from map(str, _effects(everything, "all", planned))
    for run in report.runs:
        if run.failed:
            yield f"{run.name}, failed: {run.failed}"
        if not run.result:
            continue
        counts = {
            "pairs were too long for the model and not used for training": run.result["left_out"],
            "test sentences were too long for the model": run.result["longer"],
            "translations were cut off at the context": [a.complete for a in answers_of(run)].count(
                False
            ),
        }
        for text, count in counts.items():
            if count:
                yield f"{run.name}: {count:,} {text}"


def _effects(
    table: Mapping[str, Mapping[str, Mapping[int, Scores]]], name: str, planned: int
) -> Iterator[Effect]:
    """Compare the fractions of wrong sentences, paired by seed."""
    mistakes = {
        kind: {seed: 1 - scores.exact for seed, scores in groups.get(name, {}).items()}
        for kind, groups in table.items()
    }
    for one, other in PAIRED:
        if mistakes.get(one) or mistakes.get(other):
            yield effect_of(one, other, mistakes, planned, "of the sentences")


def _all(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    return {"all": [*answers]}


def _groups(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [*dict.fromkeys(name for groups in table.values() for name in groups)]


def _training_depth(race: Race) -> int:
    from headway.data import pairs

    return pairs.depth_of(race.source) if pairs.is_grammar(race.source) else 0


def _spread(shares: Sequence[float]) -> str:
    return f"{mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def rows(report: RaceReport) -> Iterator[list[str]]:
    """Yield a header, then one row per group of sentences and kind."""
    yield ["sentences of", "model", "seeds", "exact", "BLEU", "chrF", "tokens right", "AER"]
    for groups in (_all, lab.by_depth, lab.by_length):
        table = report.table(groups)
        for name in _groups(table):
            for kind in KINDS:
                seeds = [*table.get(kind, {}).get(name, {}).values()]
                if seeds:
                    known = [scores.aer for scores in seeds if scores.aer is not None]
                    yield [
                        name,
                        kind,
                        str(len(seeds)),
                        _spread([scores.exact for scores in seeds]),
                        f"{mean(scores.bleu for scores in seeds):.1f}",
                        f"{mean(scores.chrf for scores in seeds):.1f}",
                        f"{mean(scores.tokens for scores in seeds):.1%}",
                        f"{mean(known):.1%}" if known else "-",
                    ]


def described(report: RaceReport) -> str:
    """Return the budget and the machine in one line."""
    done = {run.job.variant: run.result for run in report.runs if run.result}
    settings = report.race.settings
    models = ", ".join(
        f"{kind} {done[kind]['parameters']:,} parameters, width {settings[kind]['width']}, "
        f"{mean(run.result['seconds'] for run in report.of(kind)):,.0f} s"
        for kind in KINDS
        if kind in done
    )
    steps = settings[KINDS[0]]["steps"]
    text = f"{report.race.source}, {steps:,} steps, {SEEDS[report.race.size]} seeds: {models}"
    machine = next((run.result["machine"] for run in report.runs if run.result), None)
    if machine:
        text += f"; {machine.get('processor', '')}, PyTorch {machine.get('torch', '')}"
    return text


def pictures(report: RaceReport) -> Iterator[Picture]:
    """Yield plots of scores by depth and length, of the loss, and the alignments of SENTENCE."""
    axes: tuple[tuple[str, str, Any, Callable[[str], int]], ...] = (
        ("depth", "clauses between subject and verb", lab.by_depth, lambda n: int(n.split()[1])),
        ("length", "maximum number of source words", lab.by_length, _longest),
    )
    shown: tuple[tuple[str, str, Callable[[Scores], float]], ...] = (
        ("exact", "exact matches, % of the sentences", lambda scores: 100 * scores.exact),
        ("bleu", "BLEU", lambda scores: scores.bleu),
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
    losses = {
        kind: [dict(run.curve) for run in report.of(kind)] for kind in KINDS if report.of(kind)
    }
    if losses:
        label = "validation loss, nats per token"
        yield curves("loss", label, losses, _COLOURS, framed=[*losses])
    for kind in KINDS:
        matrices = (run.result["matrix"] for run in report.of(kind))
        matrix = next(filter(None, matrices), None)
        if matrix:
            yield alignment(f"alignment-{kind}", kind, matrix)


def _longest(name: str) -> int:
    """Return the maximum number of words of a group; for the last one, its minimum plus ten."""
    numbers = [int(word) for word in name.split() if word.isdigit()]
    return numbers[1] if len(numbers) > 1 else numbers[0] + 10


def alignment(name: str, title: str, matrix: Mapping[str, Any]) -> Picture:
    """Draw the attention weights of each target word."""
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


def write(report: RaceReport, folder: Path) -> Path:
    """Write index.html, report.md, report.json and the plots; return their folder."""
    target = folder / report.race.folder
    plots = [*pictures(report)]
    summary = Summary(
        QUESTION, described(report), [*answers(report)], [*rows(report)], LEGEND, report.command
    )
    sentences = [(kind, run.result["sentence"]) for kind in KINDS for run in report.of(kind)[:1]]
    maps = [picture for picture in plots if picture.name.startswith("alignment")]
    alignments = (
        f"<h2>Alignments</h2>\n<p>{escape(SENTENCE)}</p>\n<dl>"
        f"{''.join(f'<dt>{kind}</dt><dd>{escape(text)}</dd>' for kind, text in sentences)}</dl>\n"
        "<p class=soft>Rows are target words, columns are source words; darker cells are larger "
        f"weights.</p>\n<div class=samples>{''.join(map(embedded, maps))}</div>"
    )
    translations = "\n".join(
        [f"`{SENTENCE}`\n", *(f"- {kind}: {text}" for kind, text in sentences)]
    )
    content = {
        "race": {"source": report.race.source, "settings": report.race.settings},
        "command": report.command,
        "answers": summary.answers,
        "rows": summary.rows,
        "runs": [
            {
                "kind": run.job.variant,
                "seed": run.job.seed,
                "curve": run.curve,
                "failed": run.failed,
            }
            for run in report.runs
        ],
    }
    texts = {
        "index.html": as_html(summary, [plot for plot in plots if plot not in maps], alignments),
        "report.md": as_markdown(summary, translations),
        "report.json": json.dumps(content, allow_nan=False) + "\n",
    }
    pages.write(target, texts, plots)
    return target
