"""A plan as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headway.plan.cards import GIB, Efficiency
from headway.plan.estimate import USABLE, Estimate

MIB = 2**20
BAR = 9  # characters of the longest bar
PARTS = {
    "products": "matrix products",
    "attention": "attention",
    "memory": "memory-bound",
    "update": "update",
    "exposed": "exposed comm.",
}


def rendered(plan: Estimate, efficiency: Efficiency, notes: Sequence[str] = ()) -> RenderableType:
    """The plan as tables and sentences."""
    work, cluster, count = plan.work, plan.cluster, plan.parameters
    gpus = f"{cluster.gpus:,} x {cluster.card.title}"
    if cluster.nodes > 1:
        gpus += f", {cluster.nodes:,} nodes"
    name = "bfloat16" if work.itemsize == 2 else "float32"
    settings = [name, "Muon" if work.muon else "AdamW"]
    settings += ["compiled"] if work.compiled else []
    settings += ["checkpointing"] if work.recomputed else []
    settings += ["sharded (FSDP)"] if cluster.gpus > 1 else []
    windows = work.rows * work.micro_batches
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "model",
        f"{short(count.total)} parameters: blocks {short(count.blocks)}, embedding "
        f"{short(count.embedding)}, output layer {short(count.head)}",
    )
    facts.add_row("cluster", gpus)
    facts.add_row("settings", ", ".join(settings))
    facts.add_row(
        "batch",
        f"{plan.batch:,} windows of {work.tokens:,} tokens: {windows:,} per GPU, "
        f"{work.rows:,} at a time",
    )
    tables = Table.grid(padding=(0, 3))
    tables.add_row(_memory(plan), _times(plan))
    speed = (
        f"{short(plan.speed)} tokens/s ({plan.speed / cluster.gpus:,.0f} per GPU), "
        f"MFU {plan.mfu:.1%}; {plan.steps:,} steps of {short(plan.batch * work.tokens)} tokens "
        f"take {duration(plan.hours)}"
    )
    lines: list[RenderableType] = [facts, Text(), tables, Text()]
    if not plan.fits:
        lines.append(
            _line(
                "does not fit",
                f"{plan.memory.total / GIB:,.1f} GiB are needed, and "
                f"{USABLE * cluster.card.memory / GIB:,.1f} of "
                f"{cluster.card.memory / GIB:,.1f} GiB can be used",
                "bold red",
            )
        )
    lines += [_line("speed", speed), _line("limit", f"{plan.limit} {_share(plan)}")]
    lines += [_line("try", text, "bold green") for text in plan.suggestions]
    lines += [_line("note", text) for text in notes]
    fractions = (
        f"products {efficiency.products:.2f} and attention {efficiency.attention:.2f} of the peak, "
        f"memory {efficiency.memory:.2f}, links {efficiency.links:.2f} (docs/scale.md)"
    )
    return Group(*lines, _line("inputs", fractions, "dim"))


def _line(name: str, text: str, style: str = "bold") -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=8 if len(name) <= 8 else len(name))
    grid.add_row(Text(name, style), Text(text, "dim" if style == "dim" else ""))
    return grid


def _memory(plan: Estimate) -> Table:
    parts = asdict(plan.memory)
    moment, total, card = parts.pop("moment"), plan.memory.total, plan.cluster.card.memory
    unit, size = ("GiB", GIB) if total >= GIB / 10 else ("MiB", MIB)
    table = _table("memory per GPU", unit)
    for name, nbytes in parts.items():
        _row(table, name, f"{nbytes / size:,.1f}", nbytes / total)
    style = "bold" if plan.fits else "bold red"
    of = f"of {card / size:,.0f}"
    table.add_row(Text("total", style), Text(f"{total / size:,.1f}", style), of)
    table.caption, table.caption_style = f"largest at the {moment}", "dim"
    table.caption_justify = "left"
    return table


def _times(plan: Estimate) -> Table:
    table = _table("time of a step", "ms")
    for name, seconds in asdict(plan.times).items():
        _row(table, PARTS[name], f"{1000 * seconds:,.1f}", seconds / plan.times.total)
    table.add_row(Text("total", "bold"), Text(f"{1000 * plan.times.total:,.1f}", "bold"), "")
    return table


def _table(title: str, unit: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    table.title, table.title_style = title, "bold"
    table.add_column("", width=15)
    table.add_column(unit, justify="right", width=9, style="cyan", header_style="dim")
    table.add_column("", width=BAR)
    return table


def _row(table: Table, name: str, number: str, share: float) -> None:
    table.add_row(name, number, Text("█" * round(BAR * share), "cyan"))


def _share(plan: Estimate) -> str:
    times = asdict(plan.times)
    return f"({max(times.values()) / plan.times.total:.0%} of a step)"


def short(number: float) -> str:
    """A number with three digits and a letter: 8.03B."""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(hours: float) -> str:
    """A time in seconds, minutes, hours or days."""
    for unit, size in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 1.5 * size:
            return f"{hours / size:.3g} {unit}"
    return f"{3600 * hours:.3g} s"
