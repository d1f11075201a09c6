"""The page in a notebook, or as a file: of a run, or of anything that was traced."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import final

from headway import cache
from headway.explore import export, trace_file
from headway.explore.subjects import WRITE, Ask, BesideLadder, RunSubject, Stop, changes, go_on
from headway.explore.trace_file import Manifest, Tensors
from headway.tracing import Trace
from headway.training.runs import Run, find

_HEIGHT = 860  # pixels
_SIDES = ("queries", "keys", "weights")


def show(what: Trace | Run | str, text: str | Sequence[str] | None = None) -> Shown:
    """The explorer's page of a trace or of a run; a notebook shows it inline.

    what: what `headway.trace` recorded, a Run, or the name of a run in the folder `runs`.
    text: for a run what it reads, by default words of its own; for a trace its tokens, as words
        with spaces between or one by one, by default their numbers; two texts where queries and
        keys are not as many.

    Raises ValueError when there is no such run, the text does not fit, or nothing was traced.
    """
    if not isinstance(what, Trace | Run | str):
        raise ValueError(f"a trace or a run can be shown, not {type(what).__name__}")
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
        with cache.atomic(Path(path)) as temporary:
            temporary.write_text(self.html, encoding="utf-8")

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
        if self.steps.rows != slice(None):
            raise ValueError("this trace has some rows only: trace without `rows` to show it")
        tensors, manifest = trace_file.described(self.steps)
        shapes = dict(manifest["steps"])
        sizes = {
            side: {shapes[n][-2] for n in shapes if n.rpartition(".")[2] == side} for side in _SIDES
        }
        queries = max(sizes["queries"] or sizes["weights"], default=0)
        keys = max(sizes["keys"], default=queries)
        if not queries:
            raise ValueError(
                "no attention of one shape was traced: open a headway.trace around one call, and "
                "ask for queries and keys, or weights"
            )
        texts = (self.text, self.text) if queries == keys else self.text or (None, None)
        if len(texts) != 2:
            raise ValueError(f"with {queries} queries and {keys} keys, give two texts")
        about: Manifest = {"kind": "trace", "title": "a trace", "text": ""}
        about["tokens"], about["key_tokens"] = map(_tokens, texts, (queries, keys))
        return tensors, manifest | about | {"changes": changes(tensors)}


def _tokens(text: str | Sequence[str] | None, size: int) -> list[dict[str, str]]:
    given = text.split() if isinstance(text, str) else text
    words = [str(i) for i in range(size)] if given is None else list(map(str, given))
    if len(words) != size:
        raise ValueError(f"the trace has {size} tokens, the text {len(words)}")
    return [{"display": trace_file.drawn(word.encode(errors="surrogatepass"))} for word in words]
