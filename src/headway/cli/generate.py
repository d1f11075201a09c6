"""`headway generate`: what a run writes."""

from __future__ import annotations

import sys
from pathlib import Path


def generate(
    run: str,
    prompt: str = "\n",
    /,
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = 40,
    seed: int = 0,
    runs: str = "runs",
) -> None:
    """Write on from a prompt with a trained model.

    Parameters
    ----------
    run
        The name of a run in the folder `runs`, or the path of one.
    prompt
        The text to go on from.
    tokens
        How many tokens to write.
    temperature
        0 always takes the likeliest token; 1 takes each as often as the model expects it.
    top_k
        Choose among the k likeliest tokens only.
    seed
        The same seed writes the same text.
    runs
        The folder of the runs.
    """
    from headway.training.runs import Run, run_path  # late: `headway --help` answers at once

    opened = Run.open(Path(run) if Path(run).name != run else run_path(run, runs))
    if tokens < 1:
        raise ValueError(f"--tokens is 1 or more: {tokens} is not")
    tokenizer = opened.tokenizer
    start = tokenizer.encode(prompt)

    from headway.torch.generate import generate as write  # late: PyTorch takes seconds to load
    from headway.torch.weights import load

    model = load(opened)
    if len(start) > model.config.context:
        print(
            f"headway: the prompt has {len(start)} tokens, the model reads the last "
            f"{model.config.context}",
            file=sys.stderr,
        )
    print(prompt.lstrip("\n"), end="", flush=True)
    written: list[int] = []
    shown = ""
    for token in write(
        model, start, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed
    ):
        written.append(token)
        text = tokenizer.decode(written)
        if not text.endswith("\ufffd"):  # else a character is still in pieces
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()
