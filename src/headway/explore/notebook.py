"""The page of a run or of a trace, in a notebook or as a file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import final

from headway import cache
from headway.explore import export, trace_file
from headway.explore.trace_file import Manifest, Tensors
from headway.explore.tracers import (
    WRITE,
    ModelTracer,
    Stop,
    TraceRequest,
    WithLadder,
    changes,
    never_stop,
)
from headway.hf.stored import StoredModel, find
from headway.tracing import EVERYTHING, Trace
from headway.training.runs import Run

_HEIGHT = 860  # pixels
_SIDES = ("queries", "keys", "weights")


def show(what: Trace | Run | str, text: str | Sequence[str] | None = None) -> Shown:
    """Return the explorer's page of a trace or of a model; a notebook shows it inline.

    what: a trace of `headway.trace`, a Run, the name of a run in the folder `runs`, or the path of
        a run, of a Hugging Face folder or of a trace file.
    text: for a model, the text to trace, by default a sentence of its training text; for a trace,
        the names of its tokens, as a list or separated by spaces, by default numbers; two texts if
        the numbers of queries and keys differ, and for an encoder-decoder: of the decoder and of
        the encoder. A trace file has its text.

    Raises ValueError if the model does not exist, the text does not fit, the trace is empty, or the
    file is damaged.
    """
    if not isinstance(what, Trace | Run | str):
        raise ValueError(f"expected a trace or a run, got {type(what).__name__}")
    if isinstance(what, Trace):
        tensors, manifest = WithLadder(_RecordedTrace(what, text)).trace(TraceRequest(""))
    elif isinstance(what, str) and trace_file.is_trace_file(what, "runs"):
        if text is not None:
            raise ValueError(f"{what} is a trace file, which has its text; remove the text")
        tensors, manifest = trace_file.opened(Path(what))
    else:
        stored = find(what, "runs") if isinstance(what, str) else StoredModel.open(what.path)
        tracer = ModelTracer(stored)
        if not isinstance(text, str | None):
            raise ValueError("the text for a model must be one string")
        request = TraceRequest(tracer.default_text() if text is None else text, write=WRITE)
        tensors, manifest = WithLadder(tracer).trace(request)
    return Shown(export.page(tensors, manifest))


@final
class Shown:
    """The page. `html` is the content of its file."""

    def __init__(self, html: str) -> None:
        self.html = html

    def save(self, path: Path | str) -> None:
        """Write the page to a file."""
        with cache.atomic(Path(path)) as temporary:
            temporary.write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        # The frame does not have the notebook's origin, so the page cannot access the notebook.
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts allow-downloads" '
            f'style="width: 100%; height: {_HEIGHT}px; border: 0"></iframe>'
        )


@final
class _RecordedTrace:
    def __init__(self, steps: Trace, text: str | Sequence[str] | None) -> None:
        self.steps, self.text = steps, text

    def trace(self, request: TraceRequest, stop: Stop = never_stop) -> tuple[Tensors, Manifest]:
        if self.steps.part != EVERYTHING:
            raise ValueError(
                "this trace has only some rows or heads: trace without `rows` and `heads`"
            )
        tensors, manifest = trace_file.describe(self.steps)
        shapes = dict(manifest["steps"])
        has_encoder = any(name.startswith("encoder.") for name in shapes)
        sizes = {
            side: {
                shape[-2]
                for name, shape in shapes.items()
                if name.rpartition(".")[2] == side and not name.startswith("encoder.")
            }
            for side in _SIDES
        }
        queries = max(sizes["queries"] or sizes["weights"], default=0)
        keys = max(sizes["keys"], default=queries)
        if not queries:
            raise ValueError(
                "the trace has no attention of one shape: trace a single call, with queries and "
                "keys, or weights"
            )
        is_one = queries == keys and not has_encoder
        texts = (self.text, self.text) if is_one else self.text or (None, None)
        if len(texts) != 2:
            raise ValueError(f"for {queries} queries and {keys} keys, give two texts")
        manifest |= {"kind": "trace", "title": "a trace", "text": "", "changes": changes(tensors)}
        manifest["tokens"], manifest["key_tokens"] = map(_tokens, texts, (queries, keys))
        if has_encoder:
            manifest["inputs"] = manifest["tokens"]
        return tensors, manifest


def _tokens(text: str | Sequence[str] | None, size: int) -> list[dict[str, str]]:
    names = text.split() if isinstance(text, str) else text
    words = [str(i) for i in range(size)] if names is None else list(map(str, names))
    if len(words) != size:
        raise ValueError(f"the text must have {size} tokens, as the trace (it has {len(words)})")
    return [{"display": trace_file.display(word.encode(errors="surrogatepass"))} for word in words]
