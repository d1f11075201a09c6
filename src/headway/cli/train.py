"""`headway train`: a GPT on your own text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from headway.cli.progress import follow, preparing

if TYPE_CHECKING:
    from headway.data.tokenizers import Tokenizer
    from headway.engines import Engine, Name
    from headway.training.loop import Step, Trainer
    from headway.training.recipes import Plan
    from headway.training.runs import Run

_SAMPLE, _GLANCE = 120, 40  # tokens written at the end, and on the way
_ELSEWHERE = ("name", "recipe", "resume", "engine", "device", "tensorboard", "runs")


def train(
    text: str | None = None,
    /,
    *,
    recipe: str | None = None,
    name: str | None = None,
    resume: str | None = None,
    rung: str | None = None,
    preset: Literal["gpt2", "modern"] | None = None,
    tokenizer: str | None = None,
    vocabulary: int | None = None,
    context: int | None = None,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    dropout: float | None = None,
    steps: int | None = None,
    batch: int | None = None,
    micro_batch: int | None = None,
    optimizer: Literal["adamw", "muon"] | None = None,
    learning_rate: float | None = None,
    clip: float | None = None,
    evaluate_every: int | None = None,
    save_every: int | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    compile: bool | None = None,
    seed: int | None = None,
    engine: Literal["torch", "jax"] | None = None,
    device: Literal["cuda", "mps", "cpu"] | None = None,
    tensorboard: bool = False,
    runs: str = "runs",
) -> None:
    """Train a small GPT on a text, and keep it in a run directory.

    What is not said here comes from the recipe.

    Parameters
    ----------
    text
        A file, a folder of text files, or manual (Python's, on every machine), shakespeare or
        verdict (fetched once).
    recipe
        small (by default), char-cpu, shakespeare-char, gpt2-small, or the path of a .toml.
    name
        The name of the run; by default the next free number.
    resume
        Go on with this run, bit for bit, from its last checkpoint.
    rung
        A rung of the ladder in the attention's place (see `headway ladder`).
    preset
        gpt2: learned positions, LayerNorm, GELU. modern: rotary, RMSNorm, squared ReLU, QK-norm.
    tokenizer
        bpe: byte-level pairs learnt from the text. char: one token a character. byte: one a byte.
        Or the path of a tokenizer.json.
    vocabulary
        How many tokens bpe may learn.
    context
        How many tokens the model sees.
    width
        Features of a token.
    layers
        Blocks of attention and MLP.
    heads
        Heads of attention in each block.
    dropout
        Share of weights and features dropped while training.
    steps
        How many batches to learn from.
    batch
        Windows in a batch.
    micro_batch
        Windows at a time, when the memory is too short for all of a batch.
    optimizer
        adamw, or muon for the matrices and adamw for the rest.
    learning_rate
        At its highest.
    clip
        The largest norm of the gradient.
    evaluate_every
        Steps between two looks at the held-out text, the last tenth.
    save_every
        Steps between two checkpoints, each with a sample.
    precision
        By default bfloat16 where the hardware is fast with it.
    compile
        By default where the run is long enough to repay torch.compile.
    seed
        The same seed gives the same run.
    engine
        PyTorch by default, or JAX; a run that is resumed goes on in the one that it was in.
    device
        By default the best that there is.
    tensorboard
        Write the curves for TensorBoard too, into the run directory.
    runs
        The folder of the runs.
    """
    given = {k: v for k, v in locals().items() if v is not None and k not in _ELSEWHERE}
    # Late imports: `headway --help` answers at once.
    from headway.training import advice, recipes
    from headway.training.runs import find, new_path

    if resume is not None:
        if name is not None or recipe is not None:
            raise ValueError("--resume goes on with a run as it is: leave --name and --recipe out")
        _resume(find(resume, runs), given, engine, device, tensorboard)
        return
    if engine == "jax" and compile is not None:
        raise ValueError("--compile is of PyTorch: JAX always compiles, so leave it out")
    path = new_path(name, runs)
    usual = recipes.read(recipe or "small")
    plan = recipes.plan(recipes.override(usual, given))
    mistakes = [*advice.mistakes(plan.config, usual)]
    _begin(path, plan, mistakes, engine or "torch", device, tensorboard)


def _begin(
    path: Path,
    plan: Plan,
    mistakes: Sequence[str],
    name: Name,
    device: str | None,
    tensorboard: bool,
) -> None:
    """A new run. Its directory is made when all that can be refused has been."""
    from headway.engines import engine
    from headway.training.runs import Run

    own = engine(name)
    tokens = _tokens(plan.corpus, plan.tokenizer, plan.config.model.context)
    trainer = own.trainer(plan.config, tokens, device)
    curves = _curves() if tensorboard else None
    run = Run.create(path, replace(plan.config, training=trainer.config), plan.tokenizer)
    for mistake in mistakes:
        print(f"headway: {mistake}", file=sys.stderr)
    _fit(own, trainer, run, tokens, curves)


def _resume(
    run: Run, given: Mapping[str, Any], name: Name | None, device: str | None, tensorboard: bool
) -> None:
    """Go on with a run, with the settings and the text that it began with."""
    from headway.data import corpora
    from headway.data.tokenizers import digest
    from headway.engines import engine
    from headway.training import loop

    config, tokenizer = run.config, run.tokenizer
    config.require_unchanged(given)
    corpus = corpora.read(config.text)
    now = replace(config, text_sha256=digest(corpus), tokenizer_sha256=tokenizer.fingerprint)
    config.require_same(now, "now")
    own = engine(name or loop.engine_of(run))
    tokens = _tokens(corpus, tokenizer, config.model.context)
    trainer = own.trainer(config, tokens, device)
    for difference in loop.resume(trainer, run, config):
        print(f"headway: {difference}, so the run may differ in its last bits", file=sys.stderr)
    _fit(own, trainer, run, tokens, _curves() if tensorboard else None)


def _fit(own: Engine, trainer: Trainer, run: Run, tokens: Any, writer: Any) -> None:
    """Train to the end, or to Ctrl-C, and say what came of it."""
    from headway.training import advice

    engine = trainer.machine()["engine"].split()[0]
    config, tokenizer, console = run.config, run.tokenizer, Console(highlight=False, soft_wrap=True)
    training = config.training
    how = f"{training.precision}{', in JAX' if engine == 'jax' else ''}"
    how += ", compiled" if training.compile and engine == "torch" else ""
    console.print(
        f"{config.text}: {len(tokens[0]):,} tokens to learn from, {len(tokens[1]):,} held out, "
        f"{config.model.vocabulary:,} different; a model of {trainer.parameters:,} parameters\n"
        f"{training.optimizer} on {trainer.place}, {how}"
        f"{f', from step {trainer.step:,}' if trainer.step else ''}"
    )

    def sample(count: int) -> str:
        start = tokens[1][:1]
        written = own.generate(trainer.model, [start], tokens=count, temperature=0.8, top_p=0.95)
        return tokenizer.decode([*start.tolist(), *(token for (token,) in written)]).strip()

    curves, bands = writer and writer(run.path / "tensorboard"), advice.bands(config)

    def each(done: Step) -> None:
        nonlocal bands
        strange = bands.leaves(done.step, done.validation) if bands else ""
        if strange:
            console.print(Text(strange, style="yellow"))
            bands = None  # once is enough
        if curves is not None:
            for name in ("loss", "validation", "learning_rate", "gradient_norm"):
                if getattr(done, name) is not None:
                    curves.add_scalar(name, getattr(done, name), done.step)

    try:
        follow(trainer, run, console, "headway train", each=each, glance=lambda: sample(_GLANCE))
    finally:
        if curves is not None:
            curves.close()
    panel = Panel(Text(sample(_SAMPLE)), title="a sample", title_align="left")
    console.print(panel, soft_wrap=False)  # long lines go on below, within the frame
    ended = run.logged()[-1]
    words = tokenizer.decode(tokens[1][:_GLANCE]).split()[1:-1]  # the ends may be cut
    whole = [word for word in words if word.isalpha()]
    console.print(
        f"validation loss {ended['validation']:.3f} nats a token after {ended['seconds']:,.0f} s; "
        f"the run is in {run.path}\n"
        f"more of it: headway generate {run.path.name} {shlex.quote(whole[0] if whole else 'a')}\n"
        f"look inside: headway explore {run.path.name}"
    )


def _tokens(corpus: str, tokenizer: Tokenizer, context: int) -> tuple[Any, Any]:
    """The tokens to learn from and those held out, prepared with a bar."""
    from headway.data.batches import split
    from headway.data.tokens import prepared

    with preparing(Console(stderr=True), len(corpus)) as show:
        return split(prepared(corpus, tokenizer, show), context)


def _curves() -> Any:
    """TensorBoard's writer. Raises ValueError, before anything is begun, when it is missing."""
    from headway.extras import require

    require("tensorboard", "--tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
