"""What an experiment found: for the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from rich.table import Table as RichTable
from rich.text import Text

from headway.lab.effects import Effect, effect_of
from headway.lab.experiments import Experiment, Job, Variant
from headway.lab.work import FAILED, HEALTH, RESULT
from headway.training import recipes
from headway.training.runs import Run
from headway.training.settings import TrainingConfig

Curve = list[tuple[int, float]]  # steps, and the loss on held-out text after them


@dataclass(frozen=True)
class TrainedRun:
    """One run as far as it is: curve, training health, and what is known at its end.

    failed: why there is no more of it.
    """

    job: Job
    curve: Curve
    health: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None
    failed: str = ""

    @property
    def steps(self) -> int:
        """How many it is to have."""
        return int(self._training.get("steps", TrainingConfig.steps))

    @property
    def tokens(self) -> int:
        """Of a step."""
        batch = self._training.get("batch", TrainingConfig.batch)
        return int(batch * self.job.settings["model"]["context"])

    @property
    def _training(self) -> Mapping[str, Any]:
        training: Mapping[str, Any] = self.job.settings["training"]
        return training

    @property
    def loss(self) -> float | None:
        """On all of the held-out windows, at the end; None before that."""
        return self.curve[-1][1] if self.result else None


@dataclass(frozen=True)
class Comparison:
    """An experiment and its runs. remarks: what else is to be said, sentence by sentence."""

    experiment: Experiment
    runs: Sequence[TrainedRun]
    command: str
    remarks: Sequence[str] = ()
    date: str = field(
        default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds")
    )

    def of(self, variant: Variant) -> list[TrainedRun]:
        """The runs of a variant, by seed."""
        return [run for run in self.runs if run.job.variant == variant.name]

    @property
    def losses(self) -> dict[str, dict[int, float]]:
        """By variant and seed, of the runs that ended."""
        return {
            each.name: {run.job.seed: run.loss for run in self.of(each) if run.loss is not None}
            for each in self.experiment.variants
        }

    @property
    def findings(self) -> list[Effect]:
        """Each variant against the one that it is compared with."""
        losses = self.losses
        return [
            effect_of(each.name, each.against, losses, self.experiment.seeds)
            for each in self.experiment.variants
            if each.against is not None and not each.apart
        ]

    @property
    def machines(self) -> list[Mapping[str, Any]]:
        """What the runs ran on: more than one where they did not all run on the same."""
        keys = ("processor", "accelerator", "cores", self.experiment.engine, "headway", "precision")
        found = [run.result["machine"] for run in self.runs if run.result]
        short = [{key: each[key] for key in keys if each.get(key)} for each in found]
        return [each for place, each in enumerate(short) if each not in short[:place]]

    @property
    def ranked(self) -> list[Variant]:
        """The variants from the lowest loss to the highest; then those of which a run is missing,
        and last those apart."""
        losses = self.losses

        def order(variant: Variant) -> tuple[bool, bool, float]:
            own = losses[variant.name]
            missing = len(own) < self.experiment.seeds
            return bool(variant.apart), missing, mean(own.values()) if own else 0.0

        return sorted(self.experiment.variants, key=order)


class Column(NamedTuple):
    """A column of the table: its key in a record, its title, and how a value is written."""

    key: str
    title: str
    form: str


COLUMNS = (
    Column("ended", "seeds", "{}"),
    Column("loss", "loss", "{:.3f}"),
    Column("low", "least", "{:.3f}"),
    Column("high", "most", "{:.3f}"),
    Column("parameters", "parameters", "{:,}"),
    Column("tokens_per_second", "tokens/s", "{:,.0f}"),
    Column("memory", "step MB", "{:,.1f}"),
    Column("entropy", "entropy", "{:.2f}"),
    Column("largest", "largest score", "{:.1f}"),
    Column("first", "first token", "{:.0%}"),
)
LEGEND = (
    "loss: nats a token on the held-out text, the mean over the seeds, and the least and most of "
    "them; tokens/s: of one run beside as many others as there are cores for; step MB: the most "
    "that one training step takes; entropy: of the attention weights, 1 = equal weights; first "
    "token: its share of the weight; both the mean over all heads. Each comparison stands for "
    "itself: of twenty without any effect one may look like one"
)


def gather(
    experiment: Experiment, folder: Path, wrong: Mapping[str, str] | None = None
) -> list[TrainedRun]:
    """All runs of an experiment as they lie in a folder, begun or not. wrong: see `work.run`."""
    return [
        _ended(job, folder / job.folder, (wrong or {}).get(job.folder, ""))
        for job in experiment.jobs
    ]


def record(report: Comparison, variant: Variant) -> dict[str, Any]:
    """The row of a variant: the means over its seeds; None for what is not known."""
    runs = report.of(variant)
    losses = [run.loss for run in runs if run.loss is not None]
    results = [run.result for run in runs if run.result]
    last = [run.health[-1] for run in runs if run.result and run.health]

    def average(found: Sequence[float | None]) -> float | None:
        there = [each for each in found if each is not None]
        return mean(there) if there else None

    memory = average([each["memory"] for each in results])
    failed = sum(bool(run.failed) for run in runs)
    ended = f"{len(losses)}/{report.experiment.seeds}"
    return {
        "name": variant.name,
        "ended": f"{ended}, {failed} failed" if failed else ended,
        "loss": average(losses),
        "low": min(losses, default=None),
        "high": max(losses, default=None),
        "parameters": results[0]["parameters"] if results else None,
        "tokens_per_second": average([each["tokens_per_second"] for each in results]),
        "memory": None if memory is None else memory / 1e6,
        "entropy": average([_mean(each["entropy"]) for each in last]),
        "largest": max((_most(each["largest"]) for each in last), default=None),
        "first": average([_mean(each["first"]) for each in last]),
        "failed": {run.job.seed: run.failed for run in runs if run.failed},
    }


def cell(column: Column, record: Mapping[str, Any]) -> str:
    """A value for people; a dash for what is not known."""
    value = record[column.key]
    return "-" if value is None else column.form.format(value)


def terminal(report: Comparison, width: int) -> RichTable:
    """The table, as far as it fits, with what still runs."""
    longest = max(len(each.name) for each in report.experiment.variants)
    room = width - longest - 8 * report.experiment.seeds
    columns = [each for place, each in enumerate(COLUMNS) if place < room // 12]
    table = RichTable(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("variant", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    table.add_column("by seed", no_wrap=True)
    for variant in report.ranked:
        row = record(report, variant)
        style = "dim" if variant.apart else None
        progress = Text(" ".join(_progress(run) for run in report.of(variant)))
        table.add_row(
            variant.name, *(cell(column, row) for column in columns), progress, style=style
        )
    return table


def answers(report: Comparison) -> list[str]:
    """What was found, a sentence each; what stands apart; what failed; what else there is."""
    found = [str(each) for each in report.findings]
    found += [f"{each.name}: {each.apart}" for each in report.experiment.variants if each.apart]
    found += [
        f"{run.job.variant}, seed {run.job.seed}, was gone on with elsewhere: {each}"
        for run in report.runs
        for each in (run.result or {}).get("differences", [])
    ]
    found += [
        f"{run.job.variant}, seed {run.job.seed}, failed: {run.failed}"
        for run in report.runs
        if run.failed
    ]
    missing = sum(run.result is None and not run.failed for run in report.runs)
    if missing:
        found.append(f"{missing} of {len(report.runs)} runs have not ended")
    return [*found, *report.remarks]


def markdown(report: Comparison) -> str:
    """The question, the answers, the table and the command."""
    head = ["variant", *(column.title for column in COLUMNS)]

    def row(name: str, found: Mapping[str, Any]) -> str:
        return f"| {' | '.join([_plain(name), *(cell(column, found) for column in COLUMNS)])} |"

    lines = [
        f"# {report.experiment.name}",
        _plain(report.experiment.question),
        "\n".join(f"- {_plain(answer)}" for answer in answers(report)),
        "\n".join(
            [
                f"| {' | '.join(head)} |",
                f"|---|{'---:|' * len(COLUMNS)}",
                *(row(each.name, record(report, each)) for each in report.ranked),
            ]
        ),
        LEGEND + ".",
        f"{described(report)}.",
        f"Again: `{report.command}`",
    ]
    return "\n\n".join(lines) + "\n"


def described(report: Comparison) -> str:
    """The budget and the machine, in one line."""
    budgets = {(run.steps, run.tokens) for run in report.runs}
    texts = {str(run.job.settings.get("text", recipes.TEXT)) for run in report.runs}
    parts = [
        ", ".join(sorted(texts)),
        *(f"{steps:,} steps of {tokens:,} tokens" for steps, tokens in sorted(budgets)),
        f"{report.experiment.seeds} seeds",
        *(
            ", ".join(f"{key} {value}" for key, value in machine.items())
            for machine in report.machines
        ),
        report.date,
    ]
    return "; ".join(parts)


def as_dict(report: Comparison) -> dict[str, Any]:
    """Everything but the maps, for JSON."""
    return {
        "experiment": report.experiment.name,
        "question": report.experiment.question,
        "answers": answers(report),
        "command": report.command,
        "date": report.date,
        "machines": [dict(each) for each in report.machines],
        "findings": [
            {
                "variant": each.variant,
                "against": each.against,
                "differences": dict(each.differences),
                "mean": each.mean,
                "interval": each.interval,
                "claim": each.claim,
            }
            for each in report.findings
        ],
        "variants": [
            {
                **record(report, variant),
                "settings": dict(variant.settings),
                "runs": [_run(run) for run in report.of(variant)],
            }
            for variant in report.ranked
        ],
    }


def _run(run: TrainedRun) -> dict[str, Any]:
    shown = {k: v for k, v in (run.result or {}).items() if k not in ("maps", "words", "machine")}
    return {
        "seed": run.job.seed,
        "folder": run.job.folder,
        "curve": run.curve,
        "health": list(run.health),
        **shown,
    }


def _ended(job: Job, path: Path, wrong: str) -> TrainedRun:
    result, failed = path / RESULT, path / FAILED
    if not (path / "config.json").is_file():
        return TrainedRun(job, [], [], None, wrong)
    if result.is_file():
        return TrainedRun(job, *_finished(path, result.stat().st_mtime_ns))
    if failed.is_file():
        wrong = json.loads(failed.read_text(encoding="utf-8"))["failed"]
    return TrainedRun(job, _curve(path), _health(path), None, wrong)


@lru_cache(maxsize=1000)  # the table is drawn every second
def _finished(path: Path, written: int) -> tuple[Curve, list[dict[str, Any]], dict[str, Any]]:
    """A run that will not change. written: when its result was."""
    result = json.loads((path / RESULT).read_text(encoding="utf-8"))
    return _curve(path), _health(path), result


def _curve(path: Path) -> Curve:
    lines = Run(path).logged()
    found = [(line["step"], line["validation"]) for line in lines]
    return [(step, loss) for step, loss in found if loss is not None and isfinite(loss)]


def _health(path: Path) -> list[dict[str, Any]]:
    file = path / HEALTH
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def _plain(text: str) -> str:
    """A text that Markdown leaves as it is."""
    return text.replace("<", "&lt;").replace("|", "\\|")


def _progress(run: TrainedRun) -> str:
    """A run in one word: its loss, its share of the steps, or what became of it."""
    if run.failed:
        return "failed"
    if run.loss is not None:
        return f"{run.loss:.3f}"
    return f"{run.curve[-1][0] / run.steps:.0%}" if run.curve and run.steps else "·"


def _mean(layers: Sequence[Sequence[float]]) -> float:
    return mean(each for layer in layers for each in layer)


def _most(layers: Sequence[Sequence[float]]) -> float:
    return max(each for layer in layers for each in layer)
