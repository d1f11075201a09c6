"""The results as one self-contained HTML page."""

from collections.abc import Sequence
from html import escape
from typing import Any

from headway.bench import pages
from headway.bench.compare import Table
from headway.bench.pages import Picture
from headway.bench.results import COLUMNS, COUNTED, Column, Results, cell, remarks, shown

STYLE = """
td:nth-child(2) { font-weight: 600 } th:nth-child(2), td:nth-child(2) { text-align: left }
.speed { background: linear-gradient(var(--bar), var(--bar)) no-repeat right / var(--share) 100% }
"""


def page(report: Results, plots: Sequence[Picture]) -> str:
    """Return the page: the machine, the plots, all tables, and the meaning of the columns."""
    pictures = "".join(pages.inline(plot.svg) for plot in plots)
    sections = "\n".join(_section(report, table) for table in report.tables)
    meanings = "".join(f"<dt>{escape(c.title)}</dt><dd>{escape(c.meaning)}</dd>" for c in COLUMNS)
    body = (
        "<h1>headway bench</h1>\n"
        f"<p class=soft>{escape(report.described)}; {escape(report.machine['date'])}</p>\n"
        f"<div class=plots>{pictures}</div>\n{sections}\n"
        f"<h2>What the columns mean</h2>\n<dl>{meanings}</dl>\n"
        f"<p class=soft>{escape(COUNTED)}</p>"
    )
    return pages.page("headway bench", body, STYLE)


def _section(report: Results, table: Table) -> str:
    title = f"<h2>{escape(str(table.setting))}</h2>"
    if table.skipped:
        return f"{title}<p class=soft>skipped: {escape(table.skipped)}</p>"
    columns, records = shown(report, table)
    head = "".join(_th(column) for column in columns)
    fastest = max((record["speed"] or 0 for record in records), default=0)
    rows = "\n".join(_tr(columns, record, fastest) for record in records)
    notes = "".join(
        f"<li class={(kind or 'soft').split()[0]}>{escape(f'{kind}: ' * bool(kind) + text)}</li>"
        for kind, text in remarks(table)
    )
    grid = f"<table><tr><th></th><th>implementation</th>{head}</tr>\n{rows}</table>"
    return f"{title}\n<div class=wide>{grid if records else ''}</div>\n<ul>{notes}</ul>"


def _th(column: Column) -> str:
    words = ' class="words"' if column is COLUMNS[-1] else ""
    return f'<th{words} title="{escape(column.meaning)}">{escape(column.title)}</th>'


def _tr(columns: Sequence[Column], record: dict[str, Any], fastest: float) -> str:
    cells = "".join(_td(column, record, fastest) for column in columns)
    rank = record["rank"] or ""
    name = escape(record["name"])
    return f"<tr class={record['verdict']}><td>{rank}</td><td>{name}</td>{cells}</tr>"


def _td(column: Column, record: dict[str, Any], fastest: float) -> str:
    attributes = ' class="words"' if column is COLUMNS[-1] else ""
    if column.key == "speed" and record["speed"]:
        attributes = f' class="speed" style="--share: {record["speed"] / fastest:.0%}"'
    return f"<td{attributes}>{escape(cell(column, record))}</td>"
