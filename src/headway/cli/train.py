"""`headway train`: train a GPT on a text."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter

from headway.cli import processes as several
from headway.cli.options import options
from headway.cli.parameters import Device, Runs
from headway.cli.progress import preparing, warn
from headway.cli.training import follow, resumed
from headway.data.batches import Array
from headway.data.tokenizers import Tokenizer
from headway.engines import engine_named
from headway.extras import require
from headway.hf.stored import find as find_model
from headway.models.gpt import GPTConfig
from headway.training import advice, recipes, session
from headway.training.loop import Step
from headway.training.processes import first_here_then_others, on_first
from headway.training.runs import find, new_path
from headway.training.session import Session
from headway.training.settings import TrainingConfig

if TYPE_CHECKING:
    Model: TypeAlias = dict[str, Any] | None
    Training: TypeAlias = dict[str, Any] | None
else:
    # Left out: what is learned from the text, and settings for models that others have trained.
    _HIDDEN = {"vocabulary", "rotary", "placement", "qkv_bias", "output_bias", "bias", "segments"}
    Model = options(GPTConfig, without={*_HIDDEN, "output"})
    Training = options(TrainingConfig)


def train(
    text: str | None = None,
    /,
    *,
    recipe: str | None = None,
    start: Annotated[str | None, Parameter(name="--from")] = None,
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
    processes: int | None = None,
    tensorboard: bool = False,
    runs: Runs = "runs",
) -> None:
    """Train a small GPT on a text and write it to a run directory.

    Settings that are not given come from the recipe.

    Parameters
    ----------
    text
        A file, a folder of text files, manual (the Python manual, part of every installation), or
        shakespeare or verdict (downloaded once). A corpus of any size: a folder with .jsonl,
        .parquet or compressed files (.gz, .zst), or with train.bin and val.bin of nanoGPT.
    recipe
        small (the default), char-cpu, shakespeare-char, gpt2-small, finetune (the default with
        --from), or the path of a .toml.
    start
        A Hugging Face folder or a run whose weights and tokenizer to start from.
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
    processes
        Number of processes that train together on this machine, each with a GPU or a part of the
        cores; on several machines, use torchrun -m headway train.
    tensorboard
        Also write the curves for TensorBoard to the run directory.
    """
    named: dict[str, Any] = {"text": text, "rung": rung, "preset": preset, "tokenizer": tokenizer}
    named |= {"vocabulary": vocabulary}
    given = {k: v for k, v in named.items() if v is not None} | (model or {}) | (training or {})
    writer = _curves() if tensorboard and several.is_first() else None
    if processes is not None and processes != 1:
        several.start(processes)
    if resume is not None:
        if name is not None or recipe is not None or start is not None:
            raise ValueError(
                "--resume continues a run as it is: remove --name, --recipe and --from"
            )
        _finish(resumed(find(resume, runs), given, engine, device), writer)
        return
    if engine == "jax" and "compile" in given:
        raise ValueError("remove --compile: JAX always compiles; it is an option of PyTorch only")
    usual = recipes.read(recipe or ("small" if start is None else "finetune"))
    settings = recipes.override(usual, given)
    pretrained = None if start is None else find_model(start, runs).pretrained()
    chosen = engine_named(engine or "torch")
    group = chosen.join(device)
    chosen.keep_memory()
    path = Path(on_first(group, lambda: new_path(name, runs)))
    plan = first_here_then_others(group, lambda: recipes.plan(settings, pretrained))
    with preparing() as show:
        started = session.begin(path, plan, chosen, device, processes=group, show=show)
    for mistake in [] if pretrained else advice.mistakes(plan.config, usual):
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
    if not several.is_first():
        return
    prompt = suggestion(run.tokenizer, started.examples.validation[:200])
    print(
        f"generate more: headway generate {run.path.name} {shlex.quote(prompt)}\n"
        f"look inside: headway explore {run.path.name}"
    )


def suggestion(tokenizer: Tokenizer, passage: Array) -> str:
    """Return a prompt that the tokenizer can encode: the longest word of a passage.

    A sequence of letters is a word, of which 20 are enough: some scripts have no spaces. Without
    such a word, the prompt is the first part between spaces, or the passage.
    """
    tokens = [token for token in passage.tolist() if token not in tokenizer.eos]
    text: str = tokenizer.decode(tokens).replace("\ufffd", "")  # incomplete characters
    # The first and the last word may be incomplete.
    words: list[str] = sorted(re.findall(r"[^\W\d_]+", text)[1:-1], key=len, reverse=True)
    for word in [*words, *text.split()]:
        try:
            if len(tokenizer.encode(word[:20])) and not word.startswith("-"):  # not an option
                return word[:20]
        except ValueError:  # the vocabulary has this word with other characters around it
            continue
    return text


def _curves() -> Any:
    """Return TensorBoard's `SummaryWriter`. Raises ValueError if it is not installed."""
    require("tensorboard", "--tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
