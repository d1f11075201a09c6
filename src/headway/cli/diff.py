"""`headway diff`: the first step in which two models differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from headway.cli.parameters import Runs, Switch

if TYPE_CHECKING:
    from headway.divergence.report import Report


def diff(
    a: str,
    b: str,
    text: str | None = None,
    /,
    *,
    of_a: Annotated[list[str] | None, Parameter(name="--a", negative=())] = None,
    of_b: Annotated[list[str] | None, Parameter(name="--b", negative=())] = None,
    backward: Switch = False,
    as_json: Annotated[Switch, Parameter(name="--json")] = False,
    html: Path | None = None,
    runs: Runs = "runs",
) -> None:
    """Compare two models step by step, and name the first step that differs, and why.

    This runs the code of file.py: only compare code that you trust. The exit status is 1 if the
    logits differ by more than rounding explains.

    Parameters
    ----------
    a
        The model that is taken to be right: a run, a Hugging Face folder, or a trace file.
    b
        The same, or file.py:function that returns a torch.nn.Module, which takes tokens and returns
        logits.
    text
        The input; by default random tokens.
    of_a
        name=value: how A is run; may be repeated: attention=KERNEL, dtype=FORMAT, device=DEVICE,
        engine=ENGINE, cache=TOKENS (per call), pad_left=TOKENS, pad_right=TOKENS, checkpoint=STEP.
    of_b
        The same for B.
    backward
        Compare also the loss, the gradients of all parameters, and the first updates. The loss and
        the optimizer of B are the functions loss(model, tokens) and optimizer(model) in its file,
        if it has them.
    as_json
        Print JSON.
    html
        Also write the report to this file, as an HTML page with the matrices of both models.
    """
    from headway.divergence import compare, render  # late: `headway --help` is fast

    settings: dict[str, Any] = {
        "a_settings": _settings(of_a or ()),
        "b_settings": _settings(of_b or ()),
    }
    result = compare.diff(a, b, text, backward=backward, runs=runs, **settings)
    if as_json:
        print(json.dumps(result.as_dict(), indent=1))
    else:
        render.show(result, Console(highlight=False))
    if html is not None:
        _write(html, result, is_quiet=as_json)
    if not result.is_same:
        sys.exit(1)


def _write(html: Path, report: Report, *, is_quiet: bool) -> None:
    from headway import cache
    from headway.divergence import page

    text = page.page(report)
    with cache.atomic(html) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if not is_quiet:
        print(f"{html}: {len(text) / 1e6:,.1f} MB")


def _settings(given: Iterable[str]) -> dict[str, str]:
    settings = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--a and --b take name=value, such as dtype=bfloat16 (got {pair!r})")
        settings[name] = value
    return settings
