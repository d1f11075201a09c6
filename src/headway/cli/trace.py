"""`headway trace`: write every intermediate array of a model for one text to a file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from headway.cli.parameters import Engine, RunName, Runs


def trace(
    run: RunName,
    text: str,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("trace.safetensors"),
    engine: Engine = "torch",
    runs: Runs = "runs",
) -> None:
    """Write every intermediate array (queries, keys, weights, ...) for one text to a file.

    Parameters
    ----------
    text
        The input of the model.
    output
        The file to write: safetensors with a JSON manifest.
    """
    from headway.explore import trace_file  # late: `headway --help` is fast
    from headway.explore.tracers import RunTracer, TraceRequest
    from headway.training.runs import find

    tensors, manifest = RunTracer(find(run, runs), engine).trace(TraceRequest(text))
    trace_file.save(output, tensors, manifest)
    size, tokens = output.stat().st_size, len(manifest["tokens"])
    print(f"{output}: {len(tensors)} tensors of {tokens} tokens, {size / 1e6:,.1f} MB")
