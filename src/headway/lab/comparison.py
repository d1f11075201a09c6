"""The results of an experiment, for the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import chain
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from rich.table import Table as RichTable
from rich.text import Text

from headway.lab.effects import SMALL, Effect, effect_of
from headway.lab.experiments import Experiment, Job, Variant
from headway.lab.work import FAILED, HEALTH, RESULT
from headway.training import recipes
from headway.training.runs import Run
from headway.training.settings import TrainingConfig

Curve = list[tuple[int, float]]  # steps and the validation loss after them


@dataclass(frozen=True)
class TrainedRun:
    """The current state of a run: curve and training health.

    result: empty until the run has ended. failed: the reason why it failed, or "".
    """

    job: Job
    curve: Curve
    health: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    failed: str = ""

    @property
    def steps(self) -> int:
        """The number of steps at its end."""
        return int(self.job.settings["training"].get("steps", TrainingConfig.steps))

    @property
    def tokens(self) -> int:
        """The number of tokens in a step."""
        batch = self.job.settings["training"].get("batch", TrainingConfig.batch)
        return int(batch * self.job.settings["model"]["context"])

    @property
    def name(self) -> str:
        """The variant and the seed, for sentences."""
        return f"{self.job.variant}, seed {self.job.seed}"

    @property
    def loss(self) -> float | None:
        """The validation loss at the end; None before."""
        return self.curve[-1][1] if self.result else None


@dataclass(frozen=True)
class Comparison:
    """An experiment and its runs.

    remarks: further sentences for the report. replication: the same with other seeds, which
    confirms the claims or not.
    """

    experiment: Experiment
    runs: Sequence[TrainedRun]
    command: str
    remarks: Sequence[str] = ()
    replication: Comparison | None = None
    date: str = field(
        default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds")
    )

    def of(self, variant: Variant) -> list[TrainedRun]:
        """Return the runs of a variant, by seed."""
        return [run for run in self.runs if run.job.variant == variant.name]

    @property
    def losses(self) -> dict[str, dict[int, float]]:
        """The final losses by variant and seed."""
        return {
            variant.name: {
                run.job.seed: run.loss for run in self.of(variant) if run.loss is not None
            }
            for variant in self.experiment.variants
        }

    @property
    def lowest(self) -> dict[str, dict[int, float]]:
        """The lowest losses during training by variant and seed."""
        return {
            variant.name: {
                run.job.seed: min(loss for _, loss in run.curve)
                for run in self.of(variant)
                if run.result
            }
            for variant in self.experiment.variants
        }

    @property
    def effects(self) -> list[Effect]:
        """The effect of each variant, compared with its baseline."""
        return self.effects_on(self.losses)

    def effects_on(self, losses: Mapping[str, Mapping[int, float]]) -> list[Effect]:
        """Return the effects on these losses by variant and seed."""
        return [
            effect_of(variant.name, variant.against, losses, self.experiment.seeds)
            for variant in self.experiment.variants
            if variant.against is not None and not variant.apart
        ]

    @property
    def all_runs(self) -> list[TrainedRun]:
        """The runs, and those of the replication."""
        return [*self.runs, *(self.replication.runs if self.replication else ())]

    @property
    def machines(self) -> list[Mapping[str, Any]]:
        """The machines of the runs, each once."""
        keys = ("processor", "accelerator", "cores", self.experiment.engine, "headway", "precision")
        machines: list[Mapping[str, Any]] = []
        for run in self.all_runs:
            machine = run.result.get("machine", {})
            short = {key: machine[key] for key in keys if machine.get(key)}
            if short and short not in machines:
                machines.append(short)
        return machines

    @property
    def ranked(self) -> list[Variant]:
        """The variants by loss; then those with missing runs; then those that are not ranked."""
        losses = self.losses

        def order(variant: Variant) -> tuple[bool, bool, float]:
            by_seed = losses[variant.name]
            is_incomplete = len(by_seed) < self.experiment.seeds
            return bool(variant.apart), is_incomplete, mean(by_seed.values()) if by_seed else 0.0

        return sorted(self.experiment.variants, key=order)


class Field(NamedTuple):
    """A column of the table: its key in a record, its title and its format."""

    key: str
    title: str
    form: str


COLUMNS = (
    Field("ended", "seeds", "{}"),
    Field("loss", "loss", "{:.3f}"),
    Field("low", "least", "{:.3f}"),
    Field("high", "most", "{:.3f}"),
    Field("parameters", "parameters", "{:,}"),
    Field("tokens_per_second", "tokens/s", "{:,.0f}"),
    Field("memory", "step MB", "{:,.1f}"),
    Field("entropy", "entropy", "{:.2f}"),
    Field("largest", "largest score", "{:.1f}"),
    Field("first", "first token", "{:.0%}"),
)
EFFECT = ("variant", "against", "differences", "mean", "interval", "claim", "result")  # in JSON
LEGEND = (
    "loss: validation loss in nats per token: mean, minimum and maximum over the seeds; tokens/s: "
    "of one run while all cores train other runs; step MB: peak memory of a training step; "
    "entropy: of the attention weights (1 = equal weights) and first token: its share of the "
    "weight, both as means over all heads. Comparisons are not corrected for multiple testing: "
    "expect about one false positive in twenty comparisons, unless other seeds confirm the claims "
    "(--replicate)."
)


def gather(
    jobs: Sequence[Job], folder: Path, errors: Mapping[str, str] | None = None
) -> list[TrainedRun]:
    """Return the current state of these runs. errors: see `work.run`."""
    return [_read(job, folder / job.folder, (errors or {}).get(job.folder, "")) for job in jobs]


def of(
    experiment: Experiment, runs: Sequence[TrainedRun], command: str, remarks: Sequence[str] = ()
) -> Comparison:
    """Compare the runs of the experiment; runs of further seeds are its replication."""
    first = [run for run in runs if run.job.seed < experiment.seeds]
    others = [run for run in runs if run.job.seed >= experiment.seeds]
    replication = Comparison(experiment, others, command) if others else None
    return Comparison(experiment, first, command, remarks, replication)


def record(report: Comparison, variant: Variant) -> dict[str, Any]:
    """Return the row of a variant: means over its seeds; None for unknown values."""
    runs = report.of(variant)
    losses = [run.loss for run in runs if run.loss is not None]
    results = [run.result for run in runs if run.result]
    last = [run.health[-1] for run in runs if run.result and run.health]

    def average(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    memory = average([result["memory"] for result in results])
    failed = sum(bool(run.failed) for run in runs)
    ended = f"{len(losses)}/{report.experiment.seeds}"
    return {
        "name": variant.name,
        "ended": f"{ended}, {failed} failed" if failed else ended,
        "loss": average(losses),
        "low": min(losses, default=None),
        "high": max(losses, default=None),
        "lowest": average([*report.lowest[variant.name].values()]),
        "parameters": results[0]["parameters"] if results else None,
        "tokens_per_second": average([result["tokens_per_second"] for result in results]),
        "memory": None if memory is None else memory / 1e6,
        "entropy": average([mean(chain(*health["entropy"])) for health in last]),
        "largest": max((max(chain(*health["largest"])) for health in last), default=None),
        "first": average([mean(chain(*health["first"])) for health in last]),
        "failed": {run.job.seed: run.failed for run in runs if run.failed},
    }


def cell(column: Field, record: Mapping[str, Any]) -> str:
    """Format a value; a dash for None."""
    value = record[column.key]
    return "-" if value is None else column.form.format(value)


def terminal(report: Comparison, width: int) -> RichTable:
    """Return the table with the progress of all runs, with the columns that fit."""
    longest = max(len(variant.name) for variant in report.experiment.variants)
    columns = COLUMNS[: max(0, (width - longest - 8 * report.experiment.seeds) // 12)]
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
    """Return the effects, remarks on single variants, failures and further remarks as sentences."""
    sentences = [*_effects(report)]
    sentences += [f"{v.name}: {v.apart}" for v in report.experiment.variants if v.apart]
    sentences += [
        f"{run.name}, was resumed on another machine: {difference}"
        for run in report.all_runs
        for difference in run.result.get("differences", [])
    ]
    sentences += [f"{run.name}, failed: {run.failed}" for run in report.all_runs if run.failed]
    missing = sum(not run.result and not run.failed for run in report.all_runs)
    if missing:
        sentences.append(f"{missing} of {len(report.all_runs)} runs have not ended")
    return [*sentences, *report.remarks]


def _effects(report: Comparison) -> Iterator[str]:
    """Yield the effects at the end of training; if a loss rose before it, also at the lowest."""
    yield from _sentences(report, lambda group: group.effects)
    rows = [record(report, variant) for variant in report.experiment.variants if not variant.apart]
    if any(row["loss"] is not None and row["loss"] - row["lowest"] > SMALL for row in rows):
        for sentence in _sentences(report, lambda group: group.effects_on(group.lowest)):
            yield f"at the lowest loss of each run, {sentence}"


def _sentences(
    report: Comparison, effects_of: Callable[[Comparison], list[Effect]]
) -> Iterator[str]:
    """Yield the effects, each with that of the replication if there is one."""
    if report.replication is None:
        yield from map(str, effects_of(report))
        return
    for effect, other in zip(effects_of(report), effects_of(report.replication), strict=True):
        verdict = {True: "confirmed by ", False: "not confirmed by ", None: ""}
        yield f"{effect}; {verdict[effect.confirmed_by(other)]}other seeds: {other.result}"


def described(report: Comparison) -> str:
    """Return the budget and the machine in one line."""
    budgets = {(run.steps, run.tokens) for run in report.runs}
    texts = {str(run.job.settings.get("text", recipes.TEXT)) for run in report.runs}
    parts = [
        ", ".join(sorted(texts)),
        *(f"{steps:,} steps of {tokens:,} tokens" for steps, tokens in sorted(budgets)),
        f"{report.experiment.seeds} seeds"
        + (", and as many others to confirm the claims" if report.replication else ""),
        *(
            ", ".join(f"{key} {value}" for key, value in machine.items())
            for machine in report.machines
        ),
        report.date,
    ]
    return "; ".join(parts)


def as_dict(report: Comparison) -> dict[str, Any]:
    """Return everything except the attention maps, for JSON."""
    return {
        "experiment": report.experiment.name,
        "question": report.experiment.question,
        "answers": answers(report),
        "command": report.command,
        "date": report.date,
        "machines": [dict(machine) for machine in report.machines],
        **_measured(report),
        "replication": _measured(report.replication) if report.replication else None,
    }


def _measured(report: Comparison) -> dict[str, Any]:
    return {
        "effects": [{name: getattr(effect, name) for name in EFFECT} for effect in report.effects],
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
    shown = {k: v for k, v in run.result.items() if k not in ("maps", "words", "machine")}
    return {
        "seed": run.job.seed,
        "folder": run.job.folder,
        "curve": run.curve,
        "health": list(run.health),
        **shown,
    }


def _read(job: Job, path: Path, error: str) -> TrainedRun:
    result, failed = path / RESULT, path / FAILED
    if not (path / "config.json").is_file():
        return TrainedRun(job, [], [], {}, error)
    if result.is_file():
        return TrainedRun(job, *_finished(path, result.stat().st_mtime_ns))
    if failed.is_file():
        error = json.loads(failed.read_text(encoding="utf-8"))["failed"]
    return TrainedRun(job, _curve(path), _health(path), {}, error)


@lru_cache(maxsize=1000)  # the table is drawn every few seconds
def _finished(path: Path, written: int) -> tuple[Curve, list[dict[str, Any]], dict[str, Any]]:
    """Read a finished run, which does not change. written: the time of its result."""
    result = json.loads((path / RESULT).read_text(encoding="utf-8"))
    return _curve(path), _health(path), result


def _curve(path: Path) -> Curve:
    losses = [(line["step"], line["validation"]) for line in Run(path).logged()]
    return [(step, loss) for step, loss in losses if loss is not None and isfinite(loss)]


def _health(path: Path) -> list[dict[str, Any]]:
    file = path / HEALTH
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def _progress(run: TrainedRun) -> str:
    """Return the loss of a run, its progress, or "failed"."""
    if run.failed:
        return "failed"
    if run.loss is not None:
        return f"{run.loss:.3f}"
    return f"{run.curve[-1][0] / run.steps:.0%}" if run.curve and run.steps else "·"
