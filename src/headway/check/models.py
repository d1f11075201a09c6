"""Check a whole model of transformers in the situations in which people run it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headway.extras import require
from headway.nearest import suggestion

MARKS = {"ok": "✓", "wrong": "✗", "not finite": "✗NaN", "raised": "✗err", "not applicable": "-"}
SMALL = 50_000_000  # parameters; larger models are run in one data type
LARGEST = 1_000_000_000  # parameters; the run needs about 30 bytes for each


def of_family(name: str) -> list[Any]:
    """Return the cells of a tiny random model of a family of transformers.

    Raises ValueError for an unknown family, or one without a tiny model.
    """
    require("hf", "checking a family of transformers")
    from headway.hf.families import families, tiny_model
    from headway.hf.situations import observe

    known = {family.name: family for family in families()}
    name = name.lower()
    if name not in known:
        raise ValueError(f"unknown family {name!r}; {suggestion(name, known)}")
    return observe(tiny_model(known[name]), known[name].task)


def is_only_for_transformers(folder: Path) -> bool:
    """Whether transformers can load the architecture of a Hugging Face folder, but not Headway."""
    file = folder / "config.json"
    if not file.is_file() or find_spec("transformers") is None:
        return False
    from transformers import CONFIG_MAPPING

    from headway.hf.configs import FAMILIES

    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):  # not JSON, or not an object
        return False
    return kind in CONFIG_MAPPING and kind not in FAMILIES


def of_folder(folder: Path) -> list[Any] | str:
    """Return the cells of the model in a Hugging Face folder, or why it was not run.

    Nothing is downloaded, no code of the folder is run, and weights are read from safetensors only.
    """
    if find_spec("transformers") is None:
        return "install headway[hf]"
    import torch
    import transformers

    from headway.hf.families import quietly
    from headway.hf.situations import DTYPES, observe

    kinds = {
        "ForMaskedLM": ("masked", transformers.AutoModelForMaskedLM),
        "ForPreTraining": ("masked", transformers.AutoModelForMaskedLM),
        "ForCausalLM": ("causal", transformers.AutoModelForCausalLM),
        "LMHeadModel": ("causal", transformers.AutoModelForCausalLM),
        "ForConditionalGeneration": ("seq2seq", transformers.AutoModelForSeq2SeqLM),
    }
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        architecture = str((config.architectures or [""])[0])
        task, kind = next((v for end, v in kinds.items() if architecture.endswith(end)), ("", None))
        if kind is None:
            return f"its architecture {architecture!r} is not a language model that can be run"
        with torch.device("meta"):
            empty = kind.from_config(config)  # type: ignore[no-untyped-call]
        count = sum(parameter.numel() for parameter in empty.parameters())
        if count > LARGEST:
            return f"it has {count:,} parameters, more than {LARGEST:,}"
        with quietly():
            model = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, attn_implementation="eager"
            ).eval()
        return observe(model, task, dtypes=DTYPES if count <= SMALL else ("float32",))
    except Exception as error:  # whatever the code of a family raises for this folder
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def is_good(cells: list[Any] | str) -> bool:
    """Whether no cell is wrong. A reason why there are no cells is good, too."""
    return isinstance(cells, str) or all(c.verdict in ("ok", "not applicable") for c in cells)


def as_plain(cells: list[Any] | str) -> Any:
    """Return plain values for JSON."""
    return {"not_tested": cells} if isinstance(cells, str) else [asdict(cell) for cell in cells]


def show(name: str, cells: list[Any] | str, console: Console) -> None:
    """Print a table with a row for each situation, and one line for each wrong cell."""
    if isinstance(cells, str):
        console.print(Text(f"{name}: NOT TESTED: {cells}", "yellow"))
        return
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("situation", no_wrap=True)
    columns = dict.fromkeys((cell.implementation, cell.dtype) for cell in cells)
    for implementation, dtype in columns:
        table.add_column(f"{implementation}\n{dtype.replace('float', 'f')}", no_wrap=True)
    by_key = {(cell.situation, cell.implementation, cell.dtype): cell for cell in cells}
    for situation in dict.fromkeys(cell.situation for cell in cells):
        marks = (by_key[situation, *column] for column in columns)
        table.add_row(situation, *(_mark(cell) for cell in marks))
    console.print(table)
    console.print("ours: Headway's formula and kernels, through headway.watch", style="dim")
    for reason, skipped in _grouped(cells, "not applicable").items():
        console.print(Text(f"- not applicable, {reason}: {_places(skipped, cells)}", "dim"))
    wrong = [cell for cell in cells if cell.verdict not in ("ok", "not applicable")]
    for cell in wrong:
        detail = cell.detail
        if cell.verdict == "wrong":
            difference = f"the logits differ by {cell.error:.1e} of the largest"
            detail = f"{difference} ({detail})" if detail else difference
        where = f"{cell.implementation}, {cell.situation}, {cell.dtype}"
        console.print(Text(f"✗ {where}: ", "red") + Text(detail, "bold red"))
    if wrong and all(cell.implementation != "ours" for cell in wrong):
        hint = "eager and sdpa belong to transformers; docs/observatory.md lists their known faults"
        console.print(Text(hint, "yellow"))
    count = sum(cell.verdict == "ok" for cell in cells)
    summary = (
        f"{name}: {count} ok, {len(wrong)} wrong, {len(cells) - count - len(wrong)} not applicable"
    )
    console.print(Text(summary, "bold red" if wrong else "bold green"))


def _grouped(cells: Sequence[Any], verdict: str) -> dict[str, list[Any]]:
    """The cells with a verdict, by their reason."""
    groups: dict[str, list[Any]] = {}
    for cell in cells:
        if cell.verdict == verdict:
            groups.setdefault(cell.detail, []).append(cell)
    return groups


def _places(some: Sequence[Any], cells: Sequence[Any]) -> str:
    """Name the situations of some cells, and their columns if these are not all."""
    situations = dict.fromkeys(cell.situation for cell in some)
    columns = dict.fromkeys((cell.implementation, cell.dtype) for cell in some)
    is_all = len(situations) == len({cell.situation for cell in cells})
    names = "" if is_all else ", ".join(situations)
    if len(columns) == len({(cell.implementation, cell.dtype) for cell in cells}):
        return names
    by_implementation: dict[str, list[str]] = {}
    for implementation, dtype in columns:
        by_implementation.setdefault(implementation, []).append(dtype)
    types = {cell.dtype for cell in cells}
    where = "; ".join(
        name if len(its) == len(types) else f"{name} in {', '.join(its)}"
        for name, its in by_implementation.items()
    )
    return f"{names} ({where})" if names else where


def _mark(cell: Any) -> Text:
    style = {"ok": "green", "not applicable": "dim"}.get(cell.verdict, "bold red")
    return Text(MARKS[cell.verdict], style)
