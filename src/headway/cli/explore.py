"""`headway explore`: a page that shows what a model does with a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from headway.extras import require

if TYPE_CHECKING:
    from headway.explore.subjects import Subject


def explore(
    run: str | None = None,
    text: str | None = None,
    /,
    *,
    ladder: Annotated[bool, Parameter(negative=())] = False,
    html: Path | None = None,
    port: int = 8420,
    open: bool = True,
    engine: Literal["torch", "jax"] = "torch",
    runs: str = "runs",
) -> None:
    """Look into a trained model, or into the ladder, in the browser.

    The page is served to this machine alone, until Ctrl-C.

    Parameters
    ----------
    run
        The name of a run in the folder `runs`, or the path of one. With --ladder, the text.
    text
        What the model reads; by default what it writes by itself.
    ladder
        The rungs of the ladder instead of a run, on your words or the book's.
    html
        Write the page to this file, with all it needs inside, instead of serving it.
    port
        Where the page is served; the next free one if it is taken.
    open
        Open the browser.
    engine
        What runs the model: PyTorch or JAX.
    runs
        The folder of the runs.
    """
    if ladder and text is not None:
        raise ValueError("--ladder takes one text, in quotes, and no run")
    if ladder and engine != "torch":
        raise ValueError("the ladder runs on NumPy: leave --engine out")
    if run is None and not ladder:
        raise ValueError("what to explore? Give a run (`headway runs` lists them), or --ladder")

    from headway import cache  # late: `headway --help` answers at once
    from headway.explore.subjects import (
        WRITE,
        Ask,
        BesideLadder,
        LadderSubject,
        RunSubject,
        TranslationSubject,
    )
    from headway.ladder.rung import SENTENCE
    from headway.training.runs import find

    subject: Subject
    if run is None or ladder:
        subject = LadderSubject()
        ask = Ask(SENTENCE if run is None else run)
    elif (opened := find(run, runs, translates=None)).config.translates:
        if engine != "torch":
            raise ValueError("translations run in PyTorch alone: leave --engine out")
        if text is None:
            raise ValueError('what to translate? Give a sentence: headway explore RUN "The dog"')
        subject, ask = TranslationSubject(opened), Ask(text)
    else:
        of_run = RunSubject(opened, engine)
        subject = BesideLadder(of_run)
        ask = Ask(of_run.own_words() if text is None else text, write=WRITE)
    if html is None:
        require("explore", "the explorer")
        from headway.explore.server import serve

        serve(subject, ask, port=port, show=open)
        return

    from headway.explore.export import page

    tensors, manifest = subject.trace(ask)
    text = page(tensors, manifest)
    with cache.whole(html) as aside:
        aside.write_text(text, encoding="utf-8")
    size, tokens = html.stat().st_size, len(manifest["tokens"])
    print(f"{html}: {tokens} tokens, {size / 1e6:,.1f} MB")
