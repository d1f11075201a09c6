"""`headway trace`: write every intermediate array of a model for one text to a file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from headway.cli.parameters import Device, DType, Engine, ModelName, Runs


def trace(
    model: ModelName,
    text: str,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("trace.safetensors"),
    engine: Engine = "torch",
    device: Device = None,
    dtype: DType = None,
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
    from headway.explore.tracers import ModelTracer, TraceRequest
    from headway.hf.stored import find

    tracer = ModelTracer(find(model, runs), engine, device, dtype)
    tensors, manifest = tracer.trace(TraceRequest(text))
    trace_file.save(output, tensors, manifest)
    size, tokens = output.stat().st_size, len(manifest["tokens"])
    print(f"{output}: {len(tensors)} tensors of {tokens} tokens, {size / 1e6:,.1f} MB")
