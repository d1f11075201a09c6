"""`headway translate`: models that read one language and write another."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from headway.cli.progress import follow, interrupts
from headway.extras import require

if TYPE_CHECKING:
    from headway.data.pairs import Split
    from headway.data.tokenizers import Tokenizer
    from headway.lab.translation import Scores
    from headway.torch.train import Trainer
    from headway.training.runs import Run, RunConfig

translate = App(name="translate", help="Translate: train, ask, measure and race models that do.")

_SHADES = " ░▒▓█"
_ELSEWHERE = ("model", "pairs", "depth", "name", "resume", "device", "runs")


@translate.command
def train(
    *,
    model: Literal["rnn", "bahdanau", "luong", "transformer", "encoder"] | None = None,
    pairs: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    depth: int | None = None,
    name: str | None = None,
    resume: str | None = None,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    cell: Literal["gru", "lstm"] | None = None,
    score: Literal["dot", "general"] | None = None,
    vocabulary: int | None = None,
    context: int | None = None,
    dropout: float | None = None,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    device: Literal["cuda", "mps", "cpu"] | None = None,
    runs: str = "runs",
) -> None:
    """Train a model that translates, and keep it in a run directory.

    Parameters
    ----------
    model
        transformer (by default), rnn: the encoder's last state is all that the decoder gets,
        bahdanau or luong: it looks back at all of them, or encoder: fills in masked words.
    pairs
        A file with a sentence, a tab and its translation in each line, or two files, line by line.
        By default a grammar of our own, English to German.
    depth
        Of the grammar: how many clauses, at most, stand between a subject and its verb. By
        default 2.
    name
        The name of the run; by default the next free number.
    resume
        Go on with this run, bit for bit, from its last checkpoint.
    width
        Features of a token and of a state.
    layers
        Of the Transformer, in the encoder and in the decoder.
    heads
        Of the Transformer's attention.
    cell
        Of the recurrent models.
    score
        Of luong's attention.
    vocabulary
        How many tokens, of both languages together, byte-level pairs may learn.
    context
        The most tokens of a sentence.
    dropout
        Share of features dropped while training.
    steps
        How many batches to learn from.
    batch
        Tokens in a batch, of both languages, padding counted.
    learning_rate
        At its highest.
    seed
        The same seed gives the same run.
    device
        By default the best that there is.
    runs
        The folder of the runs.
    """
    given = {k: v for k, v in locals().items() if v is not None and k not in _ELSEWHERE}
    # Late imports: `headway --help` answers at once.
    from headway.training import translation
    from headway.training.runs import find, new_path

    source = _source(pairs, depth)
    if resume is not None:
        if name is not None or pairs is not None or depth is not None:
            raise ValueError("--resume goes on with a run as it is: leave what else it was out")
        _resume(
            find(resume, runs, translates=True), given | ({"kind": model} if model else {}), device
        )
        return
    if name in ("train", "eval", "race"):
        raise ValueError(f"{name!r} is a verb of `headway translate`: choose another --name")
    path = new_path(name, runs)
    plan = translation.plan(source, {"kind": model or "transformer", **given})
    if plan.longer:
        print(
            f"headway: {plan.longer:,} pairs are longer than {plan.config.model.context} tokens "
            "and left out: a larger --context takes them in",
            file=sys.stderr,
        )
    from headway.training.runs import Run

    trainer = _trainer(plan.config, plan.pairs, plan.tokenizer, device)
    run = Run.create(path, plan.config, plan.tokenizer)
    translation.keep_words(plan.pairs.train, run.path)
    _follow(trainer, run, plan.pairs)


def _resume(run: Run, given: Mapping[str, Any], device: str | None) -> None:
    """Go on with a run, with the settings and the pairs that it began with."""
    from headway.training import loop, translation

    config, tokenizer = run.config, run.tokenizer
    config.require_unchanged(given)
    some = _pairs_of(run)
    translation.keep_words(some.train, run.path)
    trainer = _trainer(config, some, tokenizer, device)
    for difference in loop.resume(trainer, run, config):
        print(f"headway: {difference}, so the run may differ in its last bits", file=sys.stderr)
    _follow(trainer, run, some)


def _pairs_of(run: Run) -> Split:
    """The pairs that a run began with. Raises ValueError when they, or its tokenizer, changed."""
    from headway.data import pairs
    from headway.training import translation

    config, tokenizer = run.config, run.tokenizer
    whole = pairs.read(config.text)
    here, known = translation.fingerprint(whole), tokenizer.fingerprint
    now = replace(config, text_sha256=here, tokenizer_sha256=known)
    config.require_same(now, "now")
    return translation.held(whole, tokenizer, config.model.context)[0]


def _trainer(config: RunConfig, some: Any, tokenizer: Tokenizer, device: str | None) -> Trainer:
    from headway.torch import devices, weights  # late: PyTorch takes seconds to load
    from headway.torch.tasks import of_pairs
    from headway.torch.train import Trainer

    model = weights.build(config).to(devices.choose(device))
    task = of_pairs(model, some, tokenizer, config.training)
    return Trainer(model, task, config.training)


def _follow(trainer: Trainer, run: Run, some: Any) -> None:
    """Train to the end, or to Ctrl-C, and say what came of it."""
    config, console = run.config, Console(highlight=False, soft_wrap=True)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    console.print(
        f"{config.text}: {len(some.train):,} pairs to learn from, "
        f"{len(some.validation) + len(some.test):,} held out, {config.model.vocabulary:,} tokens; "
        f"{config.model.kind} with {parameters:,} parameters"
        f"{f', from step {trainer.step:,}' if trainer.step else ''}"
    )

    apart = -(-len(some.validation) // 3)
    shown = some.validation[apart // 2 :: apart]  # files are often sorted

    def glance() -> str:
        said = _said(trainer.model, run.tokenizer, [shown[-1].source], beams=1)
        return f"{shown[-1].source} → {said[0]}"

    follow(trainer, run, console, "headway translate train", glance=glance)
    said = _said(trainer.model, run.tokenizer, [pair.source for pair in shown], beams=4)
    body = "\n\n".join(f"{pair.source}\n{each}" for pair, each in zip(shown, said, strict=True))
    panel = Panel(Text(body), title="some it never saw", title_align="left")
    console.print(panel, soft_wrap=False)
    ended = run.logged()[-1]
    console.print(
        f"validation loss {ended['validation']:.3f} nats a token after {ended['seconds']:,.0f} s; "
        f"the run is in {run.path}"
    )
    name = run.path.name
    if config.model.kind == "encoder":
        console.print(f"fill in: headway translate {name} {shlex.quote(_hidden(shown[0].source))}")
        return
    console.print(
        f"translate: headway translate {name} {shlex.quote(shown[0].source)}\n"
        f"measure: headway translate eval {name}"
    )


@translate.default
def ask(
    run: str,
    /,
    *sentences: str,
    beams: int = 4,
    penalty: float = 1.0,
    alignment: bool | None = None,
    runs: str = "runs",
) -> None:
    """Translate sentences with a trained model; one that fills in reads "_" as a masked word.

    Parameters
    ----------
    run
        The name of a run in the folder `runs`, or the path of one.
    sentences
        What to translate; without any, each line of the standard input.
    beams
        How many beginnings are kept; 1 always takes the likeliest word.
    penalty
        The length penalty: 0 prefers short translations, larger ones longer.
    alignment
        Show which words the model looked at; by default where the output is a terminal.
    runs
        The folder of the runs.
    """
    from headway.training.runs import find  # late: `headway --help` answers at once

    opened = find(run, runs, translates=True)
    asked = [*sentences] or [line.rstrip("\n") for line in sys.stdin]
    if not asked:
        raise ValueError("nothing to translate: give a sentence, or lines on the standard input")
    _check(asked, opened)
    from headway.torch.translate import alignment as looked_at
    from headway.torch.weights import load

    model, tokenizer = load(opened), opened.tokenizer
    console = Console(highlight=False, soft_wrap=True)
    if opened.config.model.kind == "encoder":
        if not all("_" in sentence for sentence in asked):
            raise ValueError(f'{opened.path} fills in words: write "_" for a masked one')
        for line in _said(model, tokenizer, asked, beams):
            console.print(line, markup=False)
        return
    from headway.data.pairs import encoded
    from headway.lab import translation

    shows = console.is_terminal if alignment is None else alignment
    shows &= opened.config.model.kind != "rnn"
    found = translation.translated(model, tokenizer, asked, beams, penalty)
    for sentence, each in zip(asked, found, strict=True):
        console.print(each.text, markup=False)
        if not each.whole:
            print(
                f"headway: it had not ended after {len(each.tokens)} tokens, and was cut there",
                file=sys.stderr,
            )
        if shows and each.whole:
            source = encoded(sentence, tokenizer)
            weights = looked_at(model, source, each.tokens)
            matrix = translation.by_word(weights, source[:-1].tolist(), each.tokens, tokenizer)
            _show(console, matrix)


def _show(console: Console, matrix: Any) -> None:
    """Words below each other, and as many cells as the source has words, dark where it looked."""
    wide = max(map(len, matrix.target))
    for word, row in zip(matrix.target, matrix.weights, strict=True):
        cells = "".join(2 * _SHADES[min(4, int(weight * 5))] for weight in row)
        best = int(row.argmax())
        console.print(
            f"  {word:>{wide}} │{cells}│ {matrix.source[best]} {row[best]:.0%}", markup=False
        )


def _check(sentences: Sequence[str], run: Run) -> None:
    """Raise ValueError for what cannot be translated; tell of what is likely to go wrong."""
    from headway.data.pairs import encoded
    from headway.training import translation

    context, tokenizer = run.config.model.context, run.tokenizer
    known = translation.known_words(run.path)
    for sentence in sentences:
        if not sentence.strip():
            raise ValueError("a sentence is empty: give some words")
        tokens = len(encoded(sentence, tokenizer))
        if tokens > context:
            raise ValueError(
                f"the sentence {sentence[:30]!r}… has {tokens:,} tokens, the model reads at most "
                f"{context}: cut it in two, or train one with a larger --context"
            )
        said = translation.strange(sentence, known) if known else ""
        if said:
            print(f"headway: {sentence[:60]!r}: {said}", file=sys.stderr)


@translate.command
def eval(
    run: str,
    /,
    *,
    beams: int = 4,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    runs: str = "runs",
) -> None:
    """Measure a run on sentences that it never saw: all together, by length and by depth.

    Of a file those that were held out for the test; of the grammar new ones, deeper ones too.

    Parameters
    ----------
    run
        The name of a run in the folder `runs`, or the path of one.
    beams
        How many beginnings are kept; 1 always takes the likeliest word.
    output
        Write the scores, and what was said, to this JSON file too.
    runs
        The folder of the runs.
    """
    from headway.training.runs import find  # late: `headway --help` answers at once

    opened = find(run, runs, translates=True)
    config, tokenizer = opened.config, opened.tokenizer
    if config.model.kind == "encoder":
        raise ValueError(f"{opened.path} fills in words: its validation loss is its measure")
    from headway.lab import translation as lab
    from headway.torch.weights import load

    require("translate", "`headway translate eval`")
    some = _pairs_of(opened)
    asked = lab.questions(config.text, frozenset(pair.source for pair in some.train), some.test)
    asked, longer = lab.fitting(asked, tokenizer, config.model.context)
    if longer:
        print(
            f"headway: {longer:,} test sentences are longer than the model, and are not asked",
            file=sys.stderr,
        )
    console = Console(highlight=False, soft_wrap=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("translating", total=len(asked))
        found = lab.answers(
            load(opened), tokenizer, asked, beams, lambda more: bar.advance(task, more)
        )
    groups = {"all": found, **lab.by_length(found), **lab.by_depth(found)}
    table = {name: lab.scores(group) for name, group in groups.items()}
    console.print(_table(table))
    cut = sum(not each.whole for each in found)
    if cut:
        console.print(f"{cut:,} had not ended, and count as they were cut")
    signatures = lab.signatures()
    for line in signatures:
        console.print(line, markup=False)
    if output is not None:
        from headway import cache

        scores = {name: each._asdict() for name, each in table.items()}
        said = [lab.as_dict(each) for each in found]
        text = json.dumps({"scores": scores, "signatures": signatures, "answers": said})
        with cache.whole(output) as aside:
            aside.write_text(text + "\n", encoding="utf-8")


@translate.command
def race(
    *,
    pairs: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    depth: int | None = None,
    quick: Annotated[bool, Parameter(negative=())] = False,
    full: Annotated[bool, Parameter(negative=())] = False,
    lab: Path = Path("lab"),
) -> None:
    """Train rnn, bahdanau and transformer with equal parameters and budget, and compare them.

    Parameters
    ----------
    pairs
        As in `headway translate train`; by default the grammar.
    depth
        Of the grammar.
    quick
        Three seeds. The default.
    full
        Five seeds and three times the steps.
    lab
        The folder of all runs and reports.
    """
    require("translate", "the race")
    require("lab", "the race")
    from headway.lab import files, race_report, work  # late: `headway --help` answers at once
    from headway.lab.race import QUESTION, Race, compete
    from headway.training.runs import Run

    if quick and full:
        raise ValueError("--quick or --full, not both")
    size = "full" if full else "quick"
    found = Race(_source(pairs, depth), size)
    runs, console = lab / files.RUNS, Console(highlight=False, soft_wrap=True)
    words = [*(["--pairs", *pairs] if pairs else []), *_option("--depth", depth), f"--{size}"]
    words += [] if lab == Path("lab") else ["--lab", str(lab)]
    command = shlex.join(["headway", "translate", "race", *words])
    there = sum(work.is_done(runs / job.folder) for job in found.jobs)
    console.print(f"{QUESTION}\n{len(found.jobs)} runs, {there} of them done already")
    steps = sum(job.settings["steps"] for job in found.jobs)
    with (
        interrupts() as stopped,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("training", total=steps)

        def show() -> None:
            far = (Run(runs / job.folder).logged() for job in found.jobs)
            bar.update(task, completed=sum(log[-1]["step"] for log in far if log))

        wrong = work.run(found, runs, do=compete, stopped=stopped, show=show)
    report = race_report.Report(found, race_report.gather(found, runs, wrong), command)
    place = race_report.write(report, lab)
    for answer in race_report.answers(report):
        console.print(f"- {answer}", markup=False)
    console.print(f"the report: {place / 'index.html'}")
    if stopped():
        console.print(f"stopped; the same command goes on: {command}")
        sys.exit(130)
    if any(run.failed for run in report.runs):
        sys.exit(1)


def _source(pairs: Sequence[str] | None, depth: int | None) -> str:
    """The name of the pairs. Raises ValueError for what does not go together."""
    from headway.data.pairs import AND, GRAMMAR

    if pairs is not None and (depth is not None or len(pairs) > 2):
        raise ValueError("--pairs takes one file or two, and no --depth, which is the grammar's")
    if any(AND in each for each in pairs or ()):
        raise ValueError(f"a file of pairs has no {AND!r} in its name: give it another")
    return AND.join(pairs) if pairs else GRAMMAR if depth is None else f"{GRAMMAR}:{depth}"


def _option(name: str, value: int | None) -> list[str]:
    return [] if value is None else [name, str(value)]


def _table(scores: Mapping[str, Scores]) -> Table:
    table = Table("", box=None, header_style="bold")
    for name in ("sentences", "BLEU", "chrF", "exact", "tokens right", "alignment error"):
        table.add_column(name, justify="right")
    for name, each in scores.items():
        table.add_row(
            name,
            f"{each.sentences:,}",
            f"{each.bleu:.1f}",
            f"{each.chrf:.1f}",
            f"{each.exact:.1%}",
            f"{each.tokens:.1%}",
            "-" if each.aer is None else f"{each.aer:.1%}",
        )
    return table


def _said(model: Any, tokenizer: Tokenizer, asked: Sequence[str], beams: int) -> list[str]:
    """Translations or, of a model that fills in, the sentences with its words in brackets."""
    from headway.lab import translation

    if model.config.kind == "encoder":
        gaps = (sentence if "_" in sentence else _hidden(sentence) for sentence in asked)
        return [translation.filled(model, tokenizer, sentence) for sentence in gaps]
    return [each.text for each in translation.translated(model, tokenizer, asked, beams)]


def _hidden(sentence: str) -> str:
    """A sentence with its second word masked."""
    first, *others = sentence.split()
    return " ".join([first, "_", *others[1:]])
