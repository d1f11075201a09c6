"""`headway generate`: text from a trained model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from headway.cli.parameters import Device, DType, Engine, ModelName, Runs
from headway.cli.progress import warn

if TYPE_CHECKING:
    from headway.data.tokenizers import Tokenizer


def generate(
    model: ModelName,
    /,
    *prompts: str,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    stop: Annotated[list[str] | None, Parameter(negative=())] = None,
    seed: int = 0,
    engine: Engine = "torch",
    device: Device = None,
    dtype: DType = None,
    runs: Runs = "runs",
) -> None:
    """Generate text from one or more prompts.

    A model that predicts masked words, such as BERT, predicts those of each prompt instead.

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
    from headway.hf.stored import find

    stored = find(model, runs)
    if tokens < 1:
        raise ValueError(f"--tokens must be >= 1 (got {tokens})")
    tokenizer, context, chosen = stored.tokenizer, stored.gpt.context, engine_named(engine)
    if stored.gpt.is_masked:
        if not prompts:
            raise ValueError(f"{stored.path} predicts masked words; give a prompt with some")
        loaded = stored.load(engine, device, dtype)
        for prompt in prompts:
            _predict(prompt, tokenizer, lambda rows: chosen.logits(loaded, rows))
        return
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

    steps = chosen.generate(
        stored.load(engine, device, dtype),
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


def _predict(prompt: str, tokenizer: Tokenizer, logits: Callable[[Any], Any]) -> None:
    """Print a prompt with its masked words predicted, and the most likely tokens of each."""
    from headway.attention.arrays import as_numpy  # late: `headway --help` is fast
    from headway.attention.normalizers import softmax

    tokens = tokenizer.with_special_tokens(prompt)
    name = "[MASK]" if tokenizer.mask is None else tokenizer.name(tokenizer.mask)
    masked = [position for position, token in enumerate(tokens) if token == tokenizer.mask]
    if not masked:
        raise ValueError(
            f"the model predicts masked words; write {name} in the prompt for each of them"
        )
    weights = softmax(as_numpy(logits(tokens[None]))[0])
    before, *parts = prompt.split(name)
    text, lines = before, list[str]()
    for position, part in zip(masked, parts, strict=True):
        best = (-weights[position]).argsort()[:5].tolist()
        text += tokenizer.decode(best[:1]) + part
        names = (f"{tokenizer.name(token)} {weights[position, token]:.1%}" for token in best)
        lines.append(f"{name} {len(lines) + 1}: {', '.join(names)}")
    print(text, *lines, sep="\n")
