"""The page in a notebook, or as a file: of a run, or of anything that was traced."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import final

from headway.data import cache
from headway.explore import export, trace_file
from headway.explore.subjects import WRITE, Ask, BesideLadder, RunSubject, Stop, changes, go_on
from headway.explore.trace_file import Manifest, Tensors
from headway.tracing import Trace
from headway.training.runs import Run, find

_HEIGHT = 860  # pixels


def show(what: Trace | Run | str, text: str | Sequence[str] | None = None) -> Shown:
    """The explorer's page of a trace or of a run; a notebook shows it inline.

    what: what `headway.trace` recorded, a Run, or the name of a run in the folder `runs`.
    text: for a run what it reads, by default words of its own; for a trace its tokens, as words
        with spaces between or one by one, by default their numbers.

    Raises ValueError when there is no such run, the text does not fit, or nothing was traced.
    """
    if isinstance(what, Trace):
        tensors, manifest = BesideLadder(_Traced(what, text)).trace(Ask(""))
    else:
        subject = RunSubject(find(what, "runs") if isinstance(what, str) else what)
        if not isinstance(text, str | None):
            raise ValueError("the text for a run is one string")
        words = subject.own_words() if text is None else text
        tensors, manifest = BesideLadder(subject).trace(Ask(words, write=WRITE))
    return Shown(export.page(tensors, manifest))


@final
class Shown:
    """The page, whole. `html` is what a file of it holds."""

    def __init__(self, html: str) -> None:
        self.html = html

    def save(self, path: Path | str) -> None:
        """Write it to a file."""
        with cache.whole(Path(path)) as aside:
            aside.write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        # A frame without the notebook's origin: the page can reach nothing of it.
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts allow-downloads" '
            f'style="width: 100%; height: {_HEIGHT}px; border: 0"></iframe>'
        )


@final
class _Traced:
    def __init__(self, steps: Trace, text: str | Sequence[str] | None) -> None:
        self.steps, self.text = steps, text

    def trace(self, ask: Ask, stop: Stop = go_on) -> tuple[Tensors, Manifest]:
        tensors, manifest = trace_file.described(self.steps)
        sides = ("queries", "keys", "weights")
        sizes = [shape[-2] for name, shape in manifest["steps"] if name.endswith(sides)]
        if not sizes:
            raise ValueError("no attention was traced: nothing is called queries, keys or weights")
        given = self.text.split() if isinstance(self.text, str) else self.text
        words = [str(i) for i in range(max(sizes))] if given is None else list(given)
        if len(words) != max(sizes):
            raise ValueError(f"the trace has {max(sizes)} tokens, the text {len(words)}")
        tokens = [
            {"display": trace_file.drawn(word.encode(errors="surrogatepass"))} for word in words
        ]
        about = {"kind": "trace", "title": "a trace", "text": "", "tokens": tokens}
        return tensors, manifest | about | {"changes": changes(tensors)}
