"""`headway trace`: every step of a text through a trained model, as a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def trace(
    run: str,
    text: str,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("trace.safetensors"),
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
    runs
        The folder of the runs.
    """
    from headway.checkpoints import files  # late: `headway --help` answers at once
    from headway.explore import trace_file
    from headway.training.runs import find

    opened = find(run, runs)
    config, tokenizer = opened.config, opened.tokenizer
    tokens = tokenizer.encode(text)
    if not 1 <= len(tokens) <= config.model.context:
        raise ValueError(
            f"the text has {len(tokens):,} tokens, the model sees 1 to {config.model.context:,}: "
            "give another text"
        )

    import torch  # late: PyTorch takes seconds to load

    from headway.torch.weights import load

    checkpoint = files.latest(opened.checkpoints)
    model = load(opened, checkpoint).eval()
    whole = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        tensors, attentions = trace_file.record(lambda part: model(whole[:, part]), len(tokens))
    manifest = {
        "model": asdict(config.model),
        "rung": config.rung,
        "run": opened.path.name,
        "step": int(checkpoint.name.removeprefix("step-")),
        "tokens": trace_file.described(tokens, tokenizer),
        "attentions": attentions,
    }
    trace_file.save(output, tensors, manifest)
    size = output.stat().st_size
    print(f"{output}: {len(tensors)} tensors of {len(tokens)} tokens, {size / 1e6:,.1f} MB")
