"""`headway train`: a GPT on your own text."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

if TYPE_CHECKING:
    from headway.tokenizers import Tokenizer
    from headway.training.runs import RunConfig

_SAMPLE = 120  # tokens


def train(
    text: str | None = None,
    /,
    *,
    name: str | None = None,
    rung: str | None = None,
    preset: Literal["gpt2", "modern"] = "gpt2",
    tokenizer: Literal["bpe", "char"] = "bpe",
    vocabulary: int = 1024,
    context: int = 64,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    steps: int = 1000,
    batch: int = 16,
    learning_rate: float = 1e-3,
    evaluate_every: int = 50,
    seed: int = 0,
    runs: str = "runs",
) -> None:
    """Train a small GPT on a text, and keep it in a run directory.

    Parameters
    ----------
    text
        A file, or a folder of text files. By default the Python manual, which is on your machine.
    name
        The name of the run; by default the next free number.
    rung
        A rung of the ladder in the attention's place (see `headway ladder`).
    preset
        gpt2: learned positions, LayerNorm, GELU. modern: rotary, RMSNorm, squared ReLU, QK-norm.
    tokenizer
        bpe: byte-level pairs learnt from the text. char: one token a character.
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
    learning_rate
        At its highest.
    evaluate_every
        Steps between two looks at the held-out text, the last tenth.
    seed
        The same seed gives the same run.
    runs
        The folder of the runs.
    """
    # Late imports: `headway --help` answers at once.
    from headway.data.corpora import read
    from headway.ladder.rungs import rung_named
    from headway.models.gpt import PRESETS, GPTConfig
    from headway.tokenizers import Tokenizer
    from headway.training.runs import RunConfig, run_path
    from headway.training.settings import TrainingConfig

    path = run_path(name, runs) if name is not None else _next_free(runs)
    if rung is not None:
        rung_named(rung)
    corpus = read(text)
    words = (
        Tokenizer.characters(corpus)
        if tokenizer == "char"
        else Tokenizer.byte_pairs(corpus, vocabulary)
    )
    model = GPTConfig(
        vocabulary=words.vocabulary,
        context=context,
        width=width,
        layers=layers,
        heads=heads,
        dropout=dropout,
        **PRESETS[preset],
    )
    training = TrainingConfig(
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        evaluate_every=evaluate_every,
        seed=seed,
    )
    _train(path, corpus, words, RunConfig(text or "manual", tokenizer, rung, model, training))


def _train(path: Path, corpus: str, words: Tokenizer, config: RunConfig) -> None:
    from headway.checkpoints import files
    from headway.cli.progress import interrupts, progress
    from headway.data.batches import split
    from headway.torch import weights  # late: PyTorch takes seconds to load
    from headway.torch.generate import generate
    from headway.torch.train import training_steps
    from headway.training.runs import Run

    tokens, held_out = split(words.encode(corpus), config.model.context)
    model = weights.build(config)
    run = Run.create(path, config, words)
    console = Console(highlight=False, soft_wrap=True)
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"{config.text}: {len(tokens):,} tokens to learn from, {len(held_out):,} held out, "
        f"{words.vocabulary:,} different; a model of {parameters:,} parameters"
    )
    began = time.perf_counter()
    with progress(console, config.training.steps) as show, interrupts() as interrupted:
        for done in training_steps(model, tokens, held_out, config.training):
            seconds = time.perf_counter() - began
            run.log({**vars(done), "seconds": round(seconds, 3)})
            show(done.step, done.loss, done.validation, done.tokens / seconds)
            if interrupted():
                break
    checkpoint = files.save(
        run.checkpoints, done.step, weights.to_arrays(model), {"step": done.step}
    )
    if interrupted():
        console.print(f"stopped after step {done.step:,}; the weights are in {checkpoint}")
        sys.exit(130)
    start = held_out[:1]
    written = generate(model, start, tokens=_SAMPLE, temperature=0.8, top_k=40)
    sample = words.decode([*start, *written])
    console.print(Panel(Text(sample.strip()), title="a sample", title_align="left"))
    console.print(
        f"validation loss {done.validation:.3f} nats a token after {seconds:,.0f} s; the run is in "
        f'{run.path}\nmore of it: headway generate {path.name} "def "'
    )


def _next_free(runs: str) -> Path:
    number = 1
    while (Path(runs) / f"run-{number}").exists():
        number += 1
    return Path(runs) / f"run-{number}"
