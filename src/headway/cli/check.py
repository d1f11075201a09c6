"""`headway check`: the doctor for anybody's attention."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headway.check import Report


def check(
    target: str | None = None,
    /,
    *,
    kind: Literal["qkv", "self", "model"] | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    features: str | None = None,
    causal: bool | None = None,
    positions: bool | None = None,
    block: bool | None = None,
    layout: Literal["bhtd", "bthd", "packed"] | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    width: int | None = None,
    vocabulary: int | None = None,
    mask_true: Literal["attend", "masked"] | None = None,
    mask_shape: Literal["keys", "full"] | None = None,
    rotary: Literal["half", "interleaved"] | None = None,
    engine: Literal["numpy", "torch", "jax"] | None = None,
    precision: Literal["float64", "float32"] | None = None,
    device: str | None = None,
    only: str | None = None,
    own: Annotated[bool, Parameter(name="--self", negative=())] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    html: Path | None = None,
    runs: str = "runs",
) -> None:
    """Find the known faults of an attention: leaks, masks reversed, a softmax over the wrong axis.

    Runs the code that you name: check only what you trust. The exit status is 1 when a check
    failed.

    Parameters
    ----------
    target
        package.module:Name, file.py:Name (a function, a class or a module), or the name of a run.
    kind
        qkv: f(queries, keys, values); self: f(x) with x (batch, tokens, width); model: f(tokens).
        What Headway knows (nn.MultiheadAttention, a run ...) needs no declaration.
    settings
        name=value for the class, or for the function; again for each.
    features
        The keywords that it understands, with commas: mask, causal, window, softcap, dropout,
        positions, cache, documents, labels, tied.
    causal
        It is causal in every call.
    positions
        It knows where tokens stand (rotary or learned positions inside; kind self).
    block
        A residual path or an MLP stands around the attention (kind self).
    layout
        qkv: (batch, heads, tokens, dim), (batch, tokens, heads, dim), or heads side by side.
    heads
        qkv: how many heads to try it with.
    kv_heads
        qkv: fewer heads of keys and values.
    head_dim
        qkv: features of a head.
    width
        self: features of a token, where they cannot be seen.
    vocabulary
        model: different tokens, where they cannot be seen.
    mask_true
        What True means in its masks.
    mask_shape
        keys: (batch, keys); full: (batch, 1, queries, keys).
    rotary
        Which features are turned together.
    engine
        The library of a function, if it is not found out; of a run torch, or jax.
    precision
        The highest that it computes in.
    device
        Where PyTorch's functions run.
    only
        Some checks only, with commas.
    own
        Check all of Headway's own mechanisms and kernels.
    as_json
        Print JSON instead.
    html
        Write the report to this file too.
    runs
        The folder of the runs.
    """
    from headway.check import report as reports  # late: `headway --help` answers at once

    if (target is None) == (not own):
        raise ValueError("say what to check: module:Name, file.py:Name, a run, or --self")
    named = {
        "kind": kind,
        "features": None if features is None else features.split(","),
        "causal": causal,
        "positions": positions,
        "block": block,
        "layout": layout,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "width": width,
        "vocabulary": vocabulary,
        "mask_true": mask_true,
        "mask_shape": mask_shape,
        "rotary": rotary,
        "engine": engine,
        "precision": precision,
        "device": device,
        "only": None if only is None else only.split(","),
    }
    declared = {name: value for name, value in named.items() if value is not None}
    console = Console(highlight=False, stderr=as_json)
    found = []
    # What the checked code prints must not stand in the JSON.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        for report in _own() if target is None else _one(target, settings or [], declared, runs):
            found.append(report)
            if target is None:
                console.print(reports.summary(report), style="green" if report.ok else "bold red")
            elif not as_json:
                reports.show(report, console)
    if as_json:
        print(json.dumps([report.as_dict() for report in found], indent=2))
    if html is not None:
        html.write_text(reports.page(found), encoding="utf-8")
    if not all(report.ok for report in found):
        sys.exit(1)


def _one(target: str, settings: list[str], declared: dict[str, Any], runs: str) -> Iterator[Report]:
    from headway.check import diagnose, targets
    from headway.training.runs import find

    if target.endswith(".py"):
        raise ValueError(f"name what is in the file: {target}:MyAttention")
    if ":" in target:
        yield diagnose(targets.load(target, settings), name=target, **declared)
    else:
        try:
            run = find(target, runs)
        except ValueError as error:
            raise ValueError(f"{error}; code is named as module:Name or file.py:Name") from None

        from headway.engines import engine_named

        name = declared.pop("engine", "torch")
        if name == "numpy":
            raise ValueError("a run is of torch or of jax: leave --engine out")
        yield diagnose(engine_named(name).load(run), name=str(run.path), **declared)


def _own() -> Iterator[Report]:
    from headway.check import diagnose
    from headway.check.own import subjects

    engines = ("torch", "numpy", *(["jax"] if find_spec("jax") else []))
    for name, attention, declared in subjects(engines):
        yield diagnose(attention, name=name, **declared)
