"""`headway trace`: every step of a text through a trained model, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def trace(
    run: str,
    text: str,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("trace.safetensors"),
    engine: Literal["torch", "jax"] = "torch",
    runs: str = "runs",
) -> None:
    """Write queries, keys, values, weights ... of every layer, for one text, to a file.

    Parameters
    ----------
    run
        The name of a run in the folder `runs`, or the path of one.
    text
        What the model reads.
    output
        The file to write, safetensors with a JSON manifest.
    engine
        PyTorch or JAX; the steps and their names are the same.
    runs
        The folder of the runs.
    """
    from headway.explore import trace_file  # late: `headway --help` answers at once
    from headway.explore.subjects import Ask, RunSubject
    from headway.training.runs import find

    tensors, manifest = RunSubject(find(run, runs), engine).trace(Ask(text))
    trace_file.save(output, tensors, manifest)
    size, tokens = output.stat().st_size, len(manifest["tokens"])
    print(f"{output}: {len(tensors)} tensors of {tokens} tokens, {size / 1e6:,.1f} MB")
