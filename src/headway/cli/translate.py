"""`headway translate`: train, use, measure and compare models that translate."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from headway.cli.experiments import LAB, command_of, finish, size_of
from headway.cli.options import options
from headway.cli.parameters import Device, RunName, Runs, Switch
from headway.cli.progress import interrupts, warn
from headway.cli.training import follow, resumed
from headway.data.pairs import AND, GRAMMAR, encoded
from headway.engines import engine_named
from headway.extras import require
from headway.models.seq2seq import Seq2SeqConfig
from headway.training import recipes, session, translation
from headway.training.runs import Run, find, new_path
from headway.training.session import Session
from headway.training.settings import TrainingConfig
from headway.training.task import task_named

if TYPE_CHECKING:
    from headway.lab.translation import Scores

    Sizes: TypeAlias = dict[str, Any] | None
    Training: TypeAlias = dict[str, Any] | None
else:
    Sizes = options(Seq2SeqConfig, without=("kind",))
    Training = options(TrainingConfig, without=("separate_documents",))

translate = App(name="translate", help="Train, use, measure and compare models that translate.")

_SHADES = " ░▒▓█"


@translate.command
def train(
    *,
    model: Literal["rnn", "bahdanau", "luong", "transformer", "encoder"] | None = None,
    pairs: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    depth: int | None = None,
    name: str | None = None,
    resume: str | None = None,
    sizes: Sizes = None,
    training: Training = None,
    device: Device = None,
    runs: Runs = "runs",
) -> None:
    """Train a model that translates and write it to a run directory.

    Settings that are not given depend on the model and on the pairs.

    Parameters
    ----------
    model
        transformer (the default); rnn, whose decoder gets only the encoder's last state; bahdanau
        or luong, whose decoders attend to all states; or encoder, which fills in masked words.
    pairs
        A file with a sentence, a tab and its translation on each line, or two files whose lines
        correspond. By default generated English-German sentences.
    depth
        Maximum number of nested clauses in generated sentences; by default 2.
    name
        Name of the run; by default the next free number.
    resume
        Continue this run from its last checkpoint, bit for bit; --steps may extend it.
    """
    given = (sizes or {}) | (training or {})
    source = _source(pairs, depth)
    if resume is not None:
        if name is not None or pairs is not None or depth is not None:
            raise ValueError(
                "--resume continues a run as it is: remove --name, --pairs and --depth"
            )
        run = find(resume, runs, translates=True)
        given |= {"kind": model} if model else {}
        _finish(resumed(run, given, "torch", device))
        return
    if name in ("train", "eval", "race"):
        raise ValueError(
            f"invalid run name {name!r}: it is a command of `headway translate`; choose another "
            "--name"
        )
    path = new_path(name, runs)
    plan = recipes.plan(translation.recipe_for(model or "transformer", source, given))
    engine = engine_named()
    engine.keep_memory()
    started = session.begin(path, plan, engine, device)
    if started.examples.note:
        warn(started.examples.note)
    _finish(started)


def _finish(started: Session) -> None:
    """Train to the end, then print how to use the run."""
    follow(started, "headway translate train")
    name, source = started.run.path.name, started.examples.shown[0].source
    if started.config.task == "masked-words":
        from headway.torch.translate import with_gap

        print(f"fill in words: headway translate {name} {shlex.quote(with_gap(source))}")
        return
    print(
        f"translate: headway translate {name} {shlex.quote(source)}\n"
        f"measure: headway translate eval {name}"
    )


@translate.default
def ask(
    run: RunName,
    /,
    *sentences: str,
    beams: int = 4,
    penalty: float = 1.0,
    alignment: bool | None = None,
    runs: Runs = "runs",
) -> None:
    """Translate sentences with a trained model, or fill in words that are written as "_".

    Parameters
    ----------
    sentences
        By default the lines of the standard input.
    beams
        The number of beams; 1 always chooses the most likely word.
    penalty
        The length penalty: 0 prefers short translations, larger values prefer longer ones.
    alignment
        Show the attention of each word; by default if the output is a terminal.
    """
    opened = find(run, runs, translates=True)
    inputs = [*sentences] or [line.rstrip("\n") for line in sys.stdin]
    if not inputs:
        raise ValueError("nothing to translate: give a sentence, or lines on the standard input")
    _check(inputs, opened)
    from headway.torch.translate import alignment as attention_of
    from headway.torch.translate import answers, translated
    from headway.torch.weights import load

    model, tokenizer = load(opened), opened.tokenizer
    console = Console(highlight=False, soft_wrap=True)
    if opened.config.seq2seq.kind == "encoder":
        if not all("_" in sentence for sentence in inputs):
            raise ValueError(f'{opened.path} fills in words: write "_" for each masked word')
        for line in answers(model, tokenizer, inputs, beams):
            console.print(line, markup=False)
        return
    from headway.lab.translation import by_word

    shows = console.is_terminal if alignment is None else alignment
    shows &= opened.config.seq2seq.kind != "rnn"
    outputs = translated(model, tokenizer, inputs, beams, penalty)
    for sentence, output in zip(inputs, outputs, strict=True):
        console.print(output.text, markup=False)
        if not output.complete:
            warn(f"the translation was cut off after {len(output.tokens)} tokens")
        if shows and output.complete:
            source = encoded(sentence, tokenizer)
            weights = attention_of(model, source, output.tokens)
            matrix = by_word(weights, source[:-1].tolist(), output.tokens, tokenizer)
            _show(console, matrix)


def _show(console: Console, matrix: Any) -> None:
    """Print one row per target word, with one cell per source word, darker for larger weights."""
    width = max(map(len, matrix.target))
    for word, row in zip(matrix.target, matrix.weights, strict=True):
        cells = "".join(2 * _SHADES[min(4, int(weight * 5))] for weight in row)
        best = int(row.argmax())
        console.print(
            f"  {word:>{width}} │{cells}│ {matrix.source[best]} {row[best]:.0%}", markup=False
        )


def _check(sentences: Sequence[str], run: Run) -> None:
    """Raise ValueError for an empty or too long sentence; warn about unknown words."""
    context, tokenizer = run.config.model.context, run.tokenizer
    known = translation.known_words(run.path)
    for sentence in sentences:
        if not sentence.strip():
            raise ValueError("empty sentence: give at least one word")
        tokens = len(encoded(sentence, tokenizer))
        if tokens > context:
            raise ValueError(
                f"the sentence {sentence[:30]!r}… has {tokens:,} tokens, but the model reads at "
                f"most {context}: shorten it, or train a model with a larger --context"
            )
        warning = translation.strange(sentence, known)
        if warning:
            warn(f"{sentence[:60]!r}: {warning}")


@translate.command
def eval(
    run: RunName,
    /,
    *,
    beams: int = 4,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    runs: Runs = "runs",
) -> None:
    """Measure a run on new sentences: in total, by length and by depth.

    For pairs from a file these are the held-out test sentences. For the built-in grammar they are
    newly generated, some with more nested clauses than in training.

    Parameters
    ----------
    beams
        The number of beams; 1 always chooses the most likely word.
    output
        Also write the scores and the translations to this JSON file.
    """
    opened = find(run, runs, translates=True)
    config, tokenizer = opened.config, opened.tokenizer
    if config.seq2seq.kind == "encoder":
        raise ValueError(
            f"{opened.path} fills in words and does not translate: see its validation loss"
        )
    from headway.lab import translation as lab
    from headway.torch.weights import load

    require("translate", "`headway translate eval`")
    split, _ = translation.held(_source_of(opened), tokenizer, config.model.context)
    questions = lab.questions(
        config.text, frozenset(pair.source for pair in split.train), split.test
    )
    questions, longer = lab.fitting(questions, tokenizer, config.model.context)
    if longer:
        warn(f"ignored {longer:,} test sentences that are longer than the context")
    console = Console(highlight=False, soft_wrap=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("translating", total=len(questions))
        answers = lab.answers(
            load(opened), tokenizer, questions, beams, lambda more: bar.advance(task, more)
        )
    groups = {"all": answers, **lab.by_length(answers), **lab.by_depth(answers)}
    table = {name: lab.scores(group) for name, group in groups.items()}
    console.print(_table(table))
    cut = sum(not answer.complete for answer in answers)
    if cut:
        console.print(f"{cut:,} translations were cut off at the context length and scored as is")
    signatures = lab.signatures()
    for line in signatures:
        console.print(line, markup=False)
    if output is not None:
        from headway import cache

        content = {
            "scores": {name: scores._asdict() for name, scores in table.items()},
            "signatures": signatures,
            "answers": [lab.as_dict(answer) for answer in answers],
        }
        with cache.atomic(output) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


@translate.command
def race(
    *,
    pairs: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    depth: int | None = None,
    quick: Switch = False,
    full: Switch = False,
    lab: Path = LAB,
) -> None:
    """Train and compare rnn, bahdanau and transformer with equal parameters and budget.

    Parameters
    ----------
    pairs
        As in `headway translate train`.
    depth
        As in `headway translate train`.
    quick
        Three seeds, for tendencies. The default.
    full
        Five seeds, for claims, and three times the steps.
    lab
        The folder of runs and reports.
    """
    require("translate", "the race")
    require("lab", "the race")
    from headway.lab import race_report, work
    from headway.lab.comparison import gather
    from headway.lab.race import QUESTION, Race, compete

    size = size_of(quick, full)
    contest = Race(_source(pairs, depth), size)
    runs, console = lab / work.RUNS, Console(highlight=False, soft_wrap=True)
    words = ["translate", "race", *(["--pairs", *pairs] if pairs else [])]
    words += [] if depth is None else ["--depth", str(depth)]
    command = command_of([*words, f"--{size}"], lab)
    finished = sum(work.is_done(runs / job.folder) for job in contest.jobs)
    console.print(f"{QUESTION}\n{len(contest.jobs)} runs, {finished} of them finished")
    steps = sum(job.settings["training"]["steps"] for job in contest.jobs)
    with (
        interrupts() as stopped,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("training", total=steps)

        def show() -> None:
            logs = (Run(runs / job.folder).logged() for job in contest.jobs)
            bar.update(task, completed=sum(log[-1]["step"] for log in logs if log))

        errors = work.run(contest.jobs, runs, do=compete, stopped=stopped, show=show)
    trained = gather(contest.jobs, runs, errors)
    report = race_report.RaceReport(contest, trained, command)
    folder = race_report.write(report, lab)
    finish(console, race_report.answers(report), folder, command, trained, stopped())


def _source(pairs: Sequence[str] | None, depth: int | None) -> str:
    """Return the name of the pairs. Raises ValueError for options that exclude each other."""
    if pairs is not None and (depth is not None or len(pairs) > 2):
        raise ValueError("--pairs takes one or two files, and excludes --depth")
    if any(AND in name for name in pairs or ()):
        raise ValueError(f"the name of a file of pairs cannot contain {AND!r}: rename the file")
    return AND.join(pairs) if pairs else GRAMMAR if depth is None else f"{GRAMMAR}:{depth}"


def _table(scores: Mapping[str, Scores]) -> Table:
    table = Table("", box=None, header_style="bold")
    for name in ("sentences", "BLEU", "chrF", "exact", "tokens right", "alignment error"):
        table.add_column(name, justify="right")
    for name, row in scores.items():
        table.add_row(
            *(name, f"{row.sentences:,}", f"{row.bleu:.1f}", f"{row.chrf:.1f}"),
            *(f"{row.exact:.1%}", f"{row.tokens:.1%}"),
            "-" if row.aer is None else f"{row.aer:.1%}",
        )
    return table


def _source_of(run: Run) -> Any:
    """Return the pairs of a run. Raises ValueError if they have changed."""
    task = task_named(run.config.task)
    source = task.read(run.config.text)
    run.config.require_same(replace(run.config, text_sha256=task.sha256_of(source)), "now")
    return source
