"""`headway generate`: what a run writes."""

from __future__ import annotations

import sys
from typing import Literal


def generate(
    run: str,
    *prompts: str,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    stop: list[str] | None = None,
    seed: int = 0,
    engine: Literal["torch", "jax"] = "torch",
    runs: str = "runs",
) -> None:
    """Write on from one or several prompts with a trained model.

    Parameters
    ----------
    run
        The name of a run in the folder `runs`, or the path of one.
    prompts
        The texts to go on from; several are written on side by side.
    tokens
        How many tokens to write, at most.
    temperature
        0 always takes the likeliest token; 1 takes each as often as the model expects it.
    top_k
        Choose among the k likeliest tokens only.
    top_p
        Choose among the likeliest tokens that together have this probability.
    stop
        Stop before this text; may be given several times.
    seed
        The same seed writes the same text.
    engine
        PyTorch or JAX; a run of either can be read by both.
    runs
        The folder of the runs.
    """
    from headway import engines  # late: `headway --help` answers at once
    from headway.training.runs import find

    opened = find(run, runs)
    if tokens < 1:
        raise ValueError(f"--tokens is 1 or more: {tokens} is not")
    tokenizer, context = opened.tokenizer, opened.config.model.context
    starts = [tokenizer.encode(prompt) for prompt in prompts or ("\n",)]
    streams = [tokenizer.stream(stop or ()) for _ in starts]
    for prompt, start in zip(prompts, starts, strict=False):
        if len(start) > context:
            print(
                f"headway: the prompt {_short(prompt)!r} has {len(start):,} tokens; the model sees "
                f"{context:,}, so it reads the last {context:,} only",
                file=sys.stderr,
            )

    own = engines.engine_named(engine)
    steps = own.generate(
        own.load(opened),
        starts,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    texts = list(prompts or ("",))
    alone = len(texts) == 1
    if alone:
        print(texts[0], end="", flush=True)
    for step in steps:
        for number, (stream, token) in enumerate(zip(streams, step, strict=True)):
            more = stream.add(token)
            texts[number] += more
            if alone:
                print(more, end="", flush=True)
        if all(stream.ended for stream in streams):
            break
    for number, stream in enumerate(streams):
        rest = stream.rest()
        if alone:
            print(rest)
        else:
            print(f"── {number + 1} ──\n{texts[number]}{rest}")


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 20 else prompt[:19] + "…"
