"""`headway check`: find known faults of an attention."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Parameter
from rich.console import Console

from headway.check import Declaration, Diagnosis, diagnose, models, render, targets
from headway.check.catalog import entries
from headway.cli.options import options
from headway.cli.parameters import DType, Runs
from headway.hf.stored import find

if TYPE_CHECKING:
    Declared: TypeAlias = dict[str, Any] | None
else:
    Declared = options(Declaration, without=("features", "skip", "pattern"))


def check(
    target: str | None = None,
    /,
    *,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    declared: Declared = None,
    features: str | None = None,
    only: str | None = None,
    skip: str | None = None,
    headway: Annotated[bool, Parameter(name="--self", negative=())] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    html: Path | None = None,
    strict: Annotated[bool, Parameter(negative=())] = False,
    dtype: DType = None,
    runs: Runs = "runs",
) -> None:
    """Check an attention implementation: leaks, reversed masks, a softmax over the wrong axis.

    This runs the code of the target: only check code that you trust. The exit status is 1 if a
    check fails. No declaration is needed for a run, nn.MultiheadAttention and some other classes.

    Parameters
    ----------
    target
        package.module:Name or file.py:Name (a function, a class or a module), a run, a Hugging
        Face folder, or hf:FAMILY, a tiny model of a family of transformers such as hf:llama.
    settings
        name=value: an argument of the class or the function; may be repeated.
    features
        The options that it supports, separated by commas: mask, causal, window, softcap, dropout,
        positions, cache, documents, labels, tied.
    only
        The names of the checks to run, separated by commas; by default all.
    skip
        The names of checks to leave out, separated by commas.
    headway
        Check all attentions and kernels of Headway.
    as_json
        Print JSON.
    html
        Also write the diagnosis to this file, as an HTML page.
    strict
        The exit status is also 1 if something that applies could not be tested.
    """
    if (target is None) == (not headway):
        raise ValueError("give one target: module:Name, file.py:Name, a model, or --self")
    console = Console(highlight=False, stderr=as_json)
    if target is not None and target.startswith("hf:"):
        if declared or settings or features or only or skip or html:
            raise ValueError(f"{target} takes no declarations; the only option is --json")
        _whole(target, models.of_family(target.removeprefix("hf:")), console, as_json)
        return
    folder = None if target is None else Path(target)
    if target is not None and folder is not None and models.is_only_for_transformers(folder):
        cells = models.of_folder(folder)
        if isinstance(cells, str):
            raise ValueError(f"{target} was not tested: {cells}")
        note = f"Headway cannot load {target}: its own checks are NOT TESTED. In transformers:"
        console.print(f"{note}\n", style="yellow")
        _whole(target, cells, console, as_json)
        return
    given = dict(declared or {})
    lists = {"features": features, "only": only, "skip": skip}
    given |= {name: value.split(",") for name, value in lists.items() if value is not None}
    diagnoses = []
    # With --json what the code prints while it is imported goes to stderr.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        if target is None:
            examined = _catalog()
        else:
            examined = iter([_one(target, settings or [], given, runs, dtype)])
        for diagnosis in examined:
            diagnoses.append(diagnosis)
            if target is None:
                style = "green" if diagnosis.ok else "bold red"
                console.print(render.summary(diagnosis), style=style)
            elif not as_json:
                render.show(diagnosis, console)
    in_transformers = None
    if folder is not None and (folder / "config.json").is_file() and not only:
        in_transformers = models.of_folder(folder)
    if as_json:
        results = [diagnosis.as_dict() for diagnosis in diagnoses]
        if in_transformers is not None:
            results[0]["in_transformers"] = models.as_plain(in_transformers)
        print(json.dumps(results, indent=2))
    elif in_transformers is not None:
        console.print()
        models.show(f"{target} in transformers", in_transformers, console)
    if html is not None:
        html.write_text(render.page(diagnoses), encoding="utf-8")
    is_untested = isinstance(in_transformers, str) or any(d.untested for d in diagnoses)
    is_good = in_transformers is None or models.is_good(in_transformers)
    if (strict and is_untested) or not is_good or not all(diagnosis.ok for diagnosis in diagnoses):
        sys.exit(1)


def _one(
    target: str, settings: list[str], given: dict[str, Any], runs: str, dtype: DType
) -> Diagnosis:
    if target.endswith(".py"):
        raise ValueError(
            f"the target must name a class or function, for example {target}:MyAttention "
            f"(got {target!r})"
        )
    if ":" in target:
        return diagnose(targets.load(target, settings), name=target, **given)
    try:
        stored = find(target, runs)
    except ValueError as error:
        raise ValueError(f"{error}; to check code, give module:Name or file.py:Name") from None
    engine = given.pop("engine", "torch")
    if engine == "numpy":
        raise ValueError("the engine of a model must be torch or jax (got numpy)")
    model = stored.load(engine, given.pop("device", None), dtype)
    return diagnose(model, name=str(stored.path), **given)


def _whole(name: str, cells: list[Any], console: Console, as_json: bool) -> None:
    """Show a whole model in all situations; exits with 1 if a cell is wrong."""
    if as_json:
        print(json.dumps(models.as_plain(cells), indent=2))
    else:
        models.show(name, cells, console)
    if not models.is_good(cells):
        sys.exit(1)


def _catalog() -> Iterator[Diagnosis]:
    engines = ("torch", "numpy", *(["jax"] if find_spec("jax") else []))
    for name, attention, declared in entries(engines):
        yield diagnose(attention, name=name, **declared)
