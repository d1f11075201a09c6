"""`headway train`: train a GPT on a text."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from headway.cli.options import options
from headway.cli.parameters import Device, Runs
from headway.cli.progress import preparing, warn
from headway.cli.training import follow, resumed
from headway.engines import engine_named
from headway.extras import require
from headway.models.gpt import GPTConfig
from headway.training import advice, recipes, session
from headway.training.loop import Step
from headway.training.runs import find, new_path
from headway.training.session import Session
from headway.training.settings import TrainingConfig

if TYPE_CHECKING:
    Model: TypeAlias = dict[str, Any] | None
    Training: TypeAlias = dict[str, Any] | None
else:
    Model = options(GPTConfig, without=("vocabulary",))
    Training = options(TrainingConfig)


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
    model: Model = None,
    training: Training = None,
    engine: Literal["torch", "jax"] | None = None,
    device: Device = None,
    tensorboard: bool = False,
    runs: Runs = "runs",
) -> None:
    """Train a small GPT on a text and write it to a run directory.

    Settings that are not given come from the recipe.

    Parameters
    ----------
    text
        A file, a folder of text files, manual (the Python manual, part of every installation), or
        shakespeare or verdict (downloaded once).
    recipe
        small (the default), char-cpu, shakespeare-char, gpt2-small, or the path of a .toml.
    name
        Name of the run; by default the next free number.
    resume
        Continue this run from its last checkpoint, bit for bit; --steps may extend it.
    rung
        Rung of the ladder to use as the attention (see `headway ladder`).
    preset
        gpt2: learned positions, LayerNorm, GELU. modern: rotary positions, RMSNorm, SwiGLU,
        QK-norm, as in Qwen 3.
    tokenizer
        bpe (byte pairs learned from the text), char, byte, or the path of a tokenizer.json.
    vocabulary
        Number of tokens that bpe learns.
    engine
        PyTorch by default, or JAX; a resumed run uses the engine that it used before.
    tensorboard
        Also write the curves for TensorBoard to the run directory.
    """
    named: dict[str, Any] = {"text": text, "rung": rung, "preset": preset, "tokenizer": tokenizer}
    named |= {"vocabulary": vocabulary}
    given = {k: v for k, v in named.items() if v is not None} | (model or {}) | (training or {})
    writer = _curves() if tensorboard else None
    if resume is not None:
        if name is not None or recipe is not None:
            raise ValueError("--resume continues a run as it is: remove --name and --recipe")
        _finish(resumed(find(resume, runs), given, engine, device), writer)
        return
    if engine == "jax" and "compile" in given:
        raise ValueError("remove --compile: JAX always compiles; it is an option of PyTorch only")
    usual = recipes.read(recipe or "small")
    path = new_path(name, runs)
    plan = recipes.plan(recipes.override(usual, given))
    mistakes = [*advice.mistakes(plan.config, usual)]
    chosen = engine_named(engine or "torch")
    chosen.keep_memory()
    with preparing() as show:
        started = session.begin(path, plan, chosen, device, show=show)
    for mistake in mistakes:
        warn(mistake)
    _finish(started, writer)


def _finish(started: Session, writer: Any) -> None:
    """Train to the end, then print commands that use the run."""
    run, bands = started.run, advice.bands(started.config)
    curves = writer(run.path / "tensorboard") if writer else None

    def on_step(step: Step) -> str | None:
        nonlocal bands
        if curves is not None:
            for name in ("loss", "validation", "learning_rate", "gradient_norm"):
                if getattr(step, name) is not None:
                    curves.add_scalar(name, getattr(step, name), step.step)
        warning = bands.leaves(step.step, step.validation) if bands else None
        if warning:
            bands = None  # one warning is enough
        return warning

    try:
        follow(started, "headway train", on_step=on_step)
    finally:
        if curves is not None:
            curves.close()
    # The longest word of a held-out passage, without its first and last, which may be cut.
    words = run.tokenizer.decode(started.examples.validation[:200]).split()[1:-1]
    prompt = max((word for word in words if word.isalpha()), key=len, default="a")
    print(
        f"generate more: headway generate {run.path.name} {shlex.quote(prompt)}\n"
        f"look inside: headway explore {run.path.name}"
    )


def _curves() -> Any:
    """Return TensorBoard's `SummaryWriter`. Raises ValueError if it is not installed."""
    require("tensorboard", "--tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
