"""A run as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from headway.bench.compare import Table
from headway.bench.plots import COLOURS, INK, PAPER, Plot
from headway.bench.report import COLUMNS, COUNTED, Column, Report, cell, remarks, shown

STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fff, #14171a);
  --ink: light-dark(#1c2024, #e6e8ea); --soft: light-dark(#5c636b, #a4abb3);
  --line: light-dark(#ddd, #343a40); --bar: light-dark(#d3e6f6, #1d3b54);
  --bad: light-dark(#b3141d, #ff7b80) }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.5rem 0 .4rem }
p { margin: .2rem 0 } .soft, li, th, .waiting { color: var(--soft) }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr));
  gap: 1rem; margin-top: 1.5rem } .plots svg { width: 100%; height: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th { font-weight: 500; font-size: .85rem } td:nth-child(2) { font-weight: 600 }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line);
  white-space: nowrap }
th:nth-child(2), td:nth-child(2), .words { text-align: left }
.speed { background: linear-gradient(var(--bar), var(--bar)) no-repeat right / var(--share) 100% }
.wrong, .failed { color: var(--bad) }
ul { margin: .4rem 0; padding-left: 1.2rem; font-size: .9rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }
dt { font-weight: 600 } dd { margin: 0 }
"""


def page(report: Report, plots: Sequence[Plot]) -> str:
    """The machine, the pictures, every table, and what the columns mean."""
    pictures = "".join(_inline(plot.svg) for plot in plots)
    sections = "\n".join(_section(report, table) for table in report.tables)
    meanings = "".join(f"<dt>{escape(c.title)}</dt><dd>{escape(c.meaning)}</dd>" for c in COLUMNS)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>headway bench</title><style>{STYLE}</style>\n<h1>headway bench</h1>\n"
        f"<p class=soft>{escape(report.described)}; {escape(report.machine['date'])}</p>\n"
        f"<div class=plots>{pictures}</div>\n{sections}\n"
        f"<h2>What the columns mean</h2>\n<dl>{meanings}</dl>\n"
        f"<p class=soft>{escape(COUNTED)}</p>\n</html>\n"
    )


def _inline(svg: str) -> str:
    """A plot as a part of the page: in the page's own colours, as wide as there is room."""
    svg = re.sub("<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub('<g id="[^"]*"', "<g", svg)  # there are two plots in a page
    svg = svg.replace(INK, "currentColor").replace(PAPER, "none")
    for light, dark in COLOURS.items():
        svg = svg.replace(light, f"light-dark({light}, {dark})")
    return svg


def _section(report: Report, table: Table) -> str:
    title = f"<h2>{escape(str(table.setting))}</h2>"
    if table.skipped:
        return f"{title}<p class=soft>skipped: {escape(table.skipped)}</p>"
    columns, records = shown(report, table)
    head = "".join(_th(column) for column in columns)
    fastest = max((record["speed"] or 0 for record in records), default=0)
    rows = "\n".join(_tr(columns, record, fastest) for record in records)
    said = "".join(
        f"<li class={(kind or 'soft').split()[0]}>{escape(f'{kind}: ' * bool(kind) + text)}</li>"
        for kind, text in remarks(table)
    )
    table_ = f"<table><tr><th></th><th>implementation</th>{head}</tr>\n{rows}</table>"
    return f"{title}\n<div class=wide>{table_ if records else ''}</div>\n<ul>{said}</ul>"


def _th(column: Column) -> str:
    words = ' class="words"' if column is COLUMNS[-1] else ""
    return f'<th{words} title="{escape(column.meaning)}">{escape(column.title)}</th>'


def _tr(columns: Sequence[Column], record: dict[str, Any], fastest: float) -> str:
    cells = "".join(_td(column, record, fastest) for column in columns)
    rank = record["rank"] or ""
    name = escape(record["name"])
    return f"<tr class={record['verdict']}><td>{rank}</td><td>{name}</td>{cells}</tr>"


def _td(column: Column, record: dict[str, Any], fastest: float) -> str:
    how = ' class="words"' if column is COLUMNS[-1] else ""
    if column.key == "speed" and record["speed"]:
        how = f' class="speed" style="--share: {record["speed"] / fastest:.0%}"'
    return f"<td{how}>{escape(cell(column, record))}</td>"
