"""A report for people: on the terminal, and as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headway.check.findings import Finding, Report, Verdict

MARKS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "not applicable": "-", "unsupported": "?"}
COLOURS = {"pass": "green", "fail": "bold red", "not applicable": "dim", "unsupported": "yellow"}


def summary(report: Report) -> str:
    """One line: what was checked, and how many checks came out how."""
    counts = (f"{report.count(v)} {v}" for v in MARKS if report.count(v))
    return f"{report.name} ({report.kind}, {report.engine}): {', '.join(counts)}"


def show(report: Report, console: Console) -> None:
    """Every finding, a line each; of a failure also the diagnosis, the cure and where to look."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in report.findings:
        colour = COLOURS[finding.verdict]
        table.add_row(
            Text(MARKS[finding.verdict], colour), Text(finding.check, colour), _said(finding)
        )
    console.print(table)
    console.print(summary(report), style="bold red" if report.failed else "bold green")


def _said(finding: Finding) -> RenderableType:
    if finding.verdict == "pass":
        return Text(finding.measured)
    if finding.verdict != "fail":
        return Text(f"{finding.verdict}: {finding.diagnosis}", COLOURS[finding.verdict])
    lines = [Text(f"{name} {value}") for name, value in _details(finding)]
    return Group(Text(finding.diagnosis, "bold"), Padding(Group(*lines), (0, 0, 0, 2)))


def _details(finding: Finding) -> Iterable[tuple[str, str]]:
    yield "measured:", finding.measured
    yield "expected:", finding.expected
    yield "to mend: ", finding.mend
    for line in finding.look:
        yield "look at: ", line


STYLE = """
:root { color-scheme: light dark; --line: light-dark(#ddd, #444); --soft: light-dark(#666, #aaa) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2.5rem }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid var(--line); padding: .4rem .8rem .4rem 0; vertical-align: top }
td:nth-child(2) { white-space: nowrap; font-weight: 600 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .4rem 0 }
dt, .reason { color: var(--soft) } dd { margin: 0 }
code { font-size: .9em; overflow-wrap: anywhere }
.pass { color: light-dark(#17742f, #5fd37f) } .fail { color: light-dark(#b3141d, #ff7b80) }
.unsupported { color: light-dark(#8a5a00, #e8b04a) }
"""


def page(reports: Iterable[Report]) -> str:
    """All reports as one HTML page."""
    bodies = []
    for report in reports:
        rows = "\n".join(_row(finding) for finding in report.findings)
        state = "pass" if report.ok else "fail"
        bodies.append(f'<h2 class="{state}">{escape(summary(report))}</h2>\n<table>{rows}</table>')
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>headway check</title><style>{STYLE}</style>\n"
        f"<h1>headway check</h1>\n{''.join(bodies)}\n</html>\n"
    )


def _row(finding: Finding) -> str:
    if finding.verdict == "pass":
        said = f"{escape(finding.promise)}<br><span class=reason>{escape(finding.measured)}</span>"
    elif finding.verdict == "fail":
        details = "".join(
            f"<dt>{escape(name)}</dt><dd>{_code(name, value)}</dd>"
            for name, value in _details(finding)
        )
        said = f"<strong>{escape(finding.diagnosis)}</strong><dl>{details}</dl>"
    else:
        said = f"<span class=reason>{finding.verdict}: {escape(finding.diagnosis)}</span>"
    mark = f'<td class="{finding.verdict}">{MARKS[finding.verdict]}</td>'
    return f"<tr>{mark}<td>{finding.check}</td><td>{said}</td></tr>"


def _code(name: str, value: str) -> str:
    return f"<code>{escape(value)}</code>" if name.startswith(("to", "look")) else escape(value)
