"""Check a whole model of transformers in the situations in which people run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headway.extras import require
from headway.nearest import suggestion

MARKS = {"ok": "✓", "wrong": "✗", "not finite": "✗ NaN", "raised": "✗ error", "not applicable": "-"}
SMALL = 50_000_000  # parameters; larger models are run in one data type


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


def of_folder(folder: Path) -> list[Any] | str:
    """Return the cells of the model in a Hugging Face folder, or why it was not run.

    Nothing is downloaded, and no code of the folder is run.
    """
    try:
        import transformers
    except ImportError:
        return "transformers is not installed: pip install 'headway[hf]'"
    from headway.hf.situations import DTYPES, observe

    kinds = {
        "ForMaskedLM": ("masked", transformers.AutoModelForMaskedLM),
        "ForCausalLM": ("causal", transformers.AutoModelForCausalLM),
        "LMHeadModel": ("causal", transformers.AutoModelForCausalLM),
    }
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    architecture = str((config.architectures or [""])[0])
    task, kind = next((v for end, v in kinds.items() if architecture.endswith(end)), ("", None))
    if kind is None:
        return f"its architecture {architecture!r} is no language model that can be run"
    model = kind.from_pretrained(folder, local_files_only=True, attn_implementation="eager").eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    return observe(model, task, dtypes=DTYPES if count < SMALL else ("float32",))


def is_good(cells: Sequence[Any]) -> bool:
    """Whether no cell is wrong."""
    return all(cell.verdict in ("ok", "not applicable") for cell in cells)


def show(name: str, cells: Sequence[Any], console: Console) -> None:
    """Print a table with a row for each situation, and one line for each wrong cell."""
    table = Table("situation", box=None, padding=(0, 2, 0, 0), header_style="dim")
    columns = dict.fromkeys((cell.implementation, cell.dtype) for cell in cells)
    for implementation, dtype in columns:
        table.add_column(f"{implementation}\n{dtype.replace('float', 'f').replace('bf', 'bf')}")
    by_key = {(cell.situation, cell.implementation, cell.dtype): cell for cell in cells}
    for situation in dict.fromkeys(cell.situation for cell in cells):
        marks = (by_key[situation, *column] for column in columns)
        table.add_row(situation, *(_mark(cell) for cell in marks))
    console.print(table)
    reasons: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.verdict == "not applicable":
            reasons.setdefault(cell.detail, {})[cell.situation] = None
    for reason, names in reasons.items():
        console.print(Text(f"- not applicable, {reason}: {', '.join(names)}", "dim"))
    wrong = [cell for cell in cells if cell.verdict not in ("ok", "not applicable")]
    for cell in wrong:
        detail = cell.detail or f"the logits differ by {cell.error:.1e} of the largest"
        where = f"{cell.implementation}, {cell.situation}, {cell.dtype}"
        console.print(Text(f"✗ {where}: ", "red") + Text(detail, "bold red"))
    count = sum(cell.verdict == "ok" for cell in cells)
    summary = (
        f"{name}: {count} ok, {len(wrong)} wrong, {len(cells) - count - len(wrong)} not applicable"
    )
    console.print(Text(summary, "bold red" if wrong else "bold green"))


def _mark(cell: Any) -> Text:
    style = {"ok": "green", "not applicable": "dim"}.get(cell.verdict, "bold red")
    return Text(MARKS[cell.verdict], style)
