"""`headway generate`: text from a trained model."""

from itertools import chain
from typing import Annotated

from cyclopts import Parameter

from headway.cli.parameters import Engine, RunName, Runs
from headway.cli.progress import warn


def generate(
    run: RunName,
    /,
    *prompts: str,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    stop: Annotated[list[str] | None, Parameter(negative=())] = None,
    seed: int = 0,
    engine: Engine = "torch",
    runs: Runs = "runs",
) -> None:
    """Generate text from one or more prompts.

    Parameters
    ----------
    prompts
        Texts to continue; several are continued as one batch.
    tokens
        Maximum number of new tokens.
    temperature
        Temperature of the distribution: 0 always takes the most likely token, 1 samples from the
        model's own distribution.
    top_k
        Sample from the k most likely tokens only.
    top_p
        Sample from the most likely tokens that together have this probability.
    stop
        Stop before this text; can be given several times.
    seed
        The same seed gives the same text.
    """
    import numpy as np  # late: `headway --help` is fast

    from headway.engines import engine_named
    from headway.training.runs import find

    opened = find(run, runs)
    if tokens < 1:
        raise ValueError(f"--tokens must be >= 1 (got {tokens})")
    tokenizer, context = opened.tokenizer, opened.config.model.context
    starts = [tokenizer.prompt(prompt) for prompt in prompts]
    streams = [tokenizer.stream(stop or (), after=start) for start in starts]
    if not prompts:
        starts = [tokenizer.encode("\n") if tokenizer.bos is None else np.array([tokenizer.bos])]
        streams = [tokenizer.stream(stop or ())]
    for prompt, start in zip(prompts, starts, strict=False):
        if len(start) > context:
            short = prompt if len(prompt) <= 20 else prompt[:19] + "…"
            warn(
                f"the prompt {short!r} has {len(start):,} tokens; the model sees {context:,}, so "
                f"it reads the last {context:,} only"
            )

    chosen = engine_named(engine)
    steps = chosen.generate(
        chosen.load(opened),
        starts,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    first = next(steps)  # invalid options are reported before anything is printed
    texts = list(prompts or ("",))
    alone = len(texts) == 1
    if alone:
        print(texts[0], end="", flush=True)
    for step in chain([first], steps):
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
