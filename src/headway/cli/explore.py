"""`headway explore`: a page that shows how a model processes a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from headway.cli.parameters import Device, DType, Engine, Runs, Switch, check_port
from headway.extras import require

if TYPE_CHECKING:
    from headway.explore.trace_file import Manifest, Tensors


def explore(
    model: str | None = None,
    text: str | None = None,
    /,
    *,
    ladder: Switch = False,
    compare: str | None = None,
    html: Path | None = None,
    port: int = 8420,
    open: bool = True,
    engine: Engine = "torch",
    device: Device = None,
    dtype: DType = None,
    runs: Runs = "runs",
) -> None:
    """Explore a trained model, or the ladder, in the browser.

    The page is served on this machine only, until Ctrl-C.

    Parameters
    ----------
    model
        Name of a run in the folder `runs`, path of a run or of a Hugging Face folder, name of a
        model in the local Hugging Face cache, or a trace file. With --ladder: the text.
    text
        The input of the model; by default a sentence of the text that it was trained on.
    ladder
        Show the rungs of the ladder instead of a run.
    compare
        Another model, with the same tokenizer, to show side by side with the first.
    html
        Write the page to this file, which needs no server, instead of serving it.
    port
        Port of the server; the next free one if it is in use.
    open
        Whether to open the browser.
    """
    check_port(port)
    if ladder and text is not None:
        raise ValueError("--ladder takes one text in quotes, and no model")
    if ladder and compare is not None:
        raise ValueError("--compare needs two models; remove --ladder")
    if ladder and (engine != "torch" or device or dtype):
        raise ValueError("the ladder runs on NumPy; remove --engine, --device and --dtype")
    if model is None and not ladder:
        raise ValueError(
            "nothing to explore; give a model (`headway runs` lists the runs) or --ladder"
        )

    from headway.explore import trace_file, tracers  # late: `headway --help` is fast
    from headway.hf.stored import find
    from headway.ladder.rung import SENTENCE

    if model is not None and not ladder and trace_file.is_trace_file(model, runs):
        if text is not None or compare or engine != "torch" or device or dtype:
            raise ValueError(
                f"{model} is a trace file of one text; remove the text, --compare, --engine, "
                "--device, --dtype"
            )
        _open_file(Path(model), html, port, open)
        return
    tracer: tracers.Tracer
    if model is None or ladder:
        tracer = tracers.LadderTracer()
        request = tracers.TraceRequest(SENTENCE if model is None else model)
    elif (stored := find(model, runs, translates=None)).run and stored.run.config.translates:
        if engine != "torch":
            raise ValueError("translation models run in PyTorch only; remove --engine")
        if compare is not None:
            raise ValueError("translation models cannot be compared; remove --compare")
        if device or dtype:
            raise ValueError("translation models run on the CPU; remove --device and --dtype")
        if text is None:
            raise ValueError('no sentence to translate; give one: headway explore RUN "The dog"')
        tracer, request = tracers.TranslationTracer(stored.run), tracers.TraceRequest(text)
    else:
        of_model = tracers.ModelTracer(stored, engine, device, dtype)
        tracer = tracers.WithLadder(of_model)
        text = of_model.default_text() if text is None else text
        request = tracers.TraceRequest(text, write=tracers.WRITE)
        if compare is not None:
            other = tracers.ModelTracer(find(compare, runs), engine, device, dtype)
            tracer = tracers.Compared(tracer, other)
    if html is None:
        require("explore", "the explorer")
        from headway.explore.server import serve

        serve(tracer, request, port=port, show=open)
    else:
        base = None if compare is None else tracer.trace(replace(request, other=True))
        _write(html, *tracer.trace(request), base)


def _open_file(path: Path, html: Path | None, port: int, show: bool) -> None:
    if html is None:
        require("explore", "the explorer")
        from headway.explore.server import serve_file

        serve_file(path, port=port, show=show)
    else:
        from headway.explore import trace_file

        _write(html, *trace_file.opened(path))


def _write(
    html: Path, tensors: Tensors, manifest: Manifest, base: tuple[Tensors, Manifest] | None = None
) -> None:
    from headway import cache
    from headway.explore.export import page

    text = page(tensors, manifest, base=base)
    with cache.atomic(html) as temporary:
        temporary.write_text(text, encoding="utf-8")
    size, tokens = html.stat().st_size, len(manifest["tokens"])
    print(f"{html}: {tokens} tokens, {size / 1e6:,.1f} MB")
