"""Show diagnoses on the terminal and as one self-contained HTML page."""

from collections.abc import Iterable, Iterator
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headway.check.findings import Diagnosis, Finding, Verdict

MARKS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "not applicable": "-", "not tested": "?"}
COLOURS = {"pass": "green", "fail": "bold red", "not applicable": "dim", "not tested": "yellow"}


def summary(diagnosis: Diagnosis) -> str:
    """Return one line: what was checked, the number of findings per verdict, what is not tested."""
    counts = [
        f"{diagnosis.count(v)} {v}" for v in MARKS if v != "not tested" and diagnosis.count(v)
    ]
    if any(finding.check == "runs" for finding in diagnosis.failed):
        counts.append("NOT TESTED: everything else")
    elif diagnosis.untested:
        counts.append(f"NOT TESTED: {_names([*diagnosis.untested])}")
    return f"{diagnosis.name} ({diagnosis.kind}, {diagnosis.engine}): {', '.join(counts)}"


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print one line per check that ran, the reasons why others did not, and all failures."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in diagnosis.findings:
        if finding.verdict in ("pass", "fail"):
            marked = Text(f"{MARKS[finding.verdict]} {finding.check}", COLOURS[finding.verdict])
            table.add_row(marked, finding.promise)
    console.print(table)
    runs = not any(finding.check == "runs" for finding in diagnosis.failed)
    for verdict in ("not applicable", "not tested") if runs else ():
        for reason, findings in _by_reason(diagnosis, verdict):
            line = f"{MARKS[verdict]} {verdict}, {reason}: {_names(findings)}"
            console.print(Text(line, COLOURS[verdict]))
    for note in diagnosis.notes:
        console.print(Text(f"note: {note}", "yellow"))
    for reason, findings in _by_reason(diagnosis, "fail"):
        console.print(Text(f"\n✗ {_title(findings)}: ", "red") + Text(reason, "bold red"))
        details = Table(box=None, show_header=False, padding=(0, 1, 0, 1))
        for name, value in _details(findings):
            details.add_row(Text(name, "dim"), Text(value))
        console.print(details)
    console.print()
    console.print(summary(diagnosis), style="bold red" if diagnosis.failed else "bold green")


def _by_reason(diagnosis: Diagnosis, verdict: Verdict) -> list[tuple[str, list[Finding]]]:
    """Group the findings with a verdict by their diagnosis."""
    groups: dict[str, list[Finding]] = {}
    for finding in diagnosis.findings:
        if finding.verdict == verdict:
            groups.setdefault(finding.diagnosis, []).append(finding)
    return list(groups.items())


def _names(findings: list[Finding]) -> str:
    return ", ".join(finding.check for finding in findings)


def _title(findings: list[Finding]) -> str:
    """Return whether the diagnosis is a fact."""
    return "cause" if findings[0].proven else "possible causes"


def _details(findings: list[Finding]) -> Iterator[tuple[str, str]]:
    """Yield all measurements, and what to do according to the first finding."""
    for finding in findings:
        yield finding.check, f"{finding.measured} (expected: {finding.expected})"
    first = findings[0]
    for line in first.trace:
        yield "raised at", line
    for line in first.look:
        yield "look at", line
    yield "fix", first.fix
    if first.declare:
        yield "if intended", f"declare {first.declare}"


STYLE = """
:root { color-scheme: light dark; --line: light-dark(#ddd, #444); --soft: light-dark(#666, #aaa) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin-top: 2.5rem } h3 { font-size: 1rem }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid var(--line); padding: .4rem .8rem .4rem 0; vertical-align: top }
td:nth-child(2) { white-space: nowrap; font-weight: 600 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .4rem 0 }
dt, .reason { color: var(--soft) } dd { margin: 0 }
code { font-size: .9em; overflow-wrap: anywhere }
.pass { color: light-dark(#17742f, #5fd37f) } .fail { color: light-dark(#b3141d, #ff7b80) }
.not-tested { color: light-dark(#8a5a00, #e8b04a) }
"""


def page(diagnoses: Iterable[Diagnosis]) -> str:
    """Return all diagnoses as one HTML page."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>headway check</title><style>{STYLE}</style>\n"
        f"<h1>headway check</h1>\n{''.join(map(_section, diagnoses))}\n</html>\n"
    )


def _section(diagnosis: Diagnosis) -> str:
    faults = "".join(
        f"<h3 class=fail>✗ {_title(findings)}: {escape(reason)}</h3><dl>"
        + "".join(
            f"<dt>{name}</dt><dd>{_value(name, value)}</dd>" for name, value in _details(findings)
        )
        + "</dl>"
        for reason, findings in _by_reason(diagnosis, "fail")
    )
    notes = "".join(f"<p class=reason>note: {escape(note)}</p>" for note in diagnosis.notes)
    rows = "\n".join(_row(finding) for finding in diagnosis.findings)
    state = "pass" if diagnosis.ok else "fail"
    title = f'<h2 class="{state}">{escape(summary(diagnosis))}</h2>'
    return f"{title}{notes}{faults}\n<table>{rows}</table>"


def _value(name: str, value: str) -> str:
    is_code = name in ("look at", "raised at", "fix")
    return f"<code>{escape(value)}</code>" if is_code else escape(value)


def _row(finding: Finding) -> str:
    verdict = finding.verdict
    reason = finding.measured or f"{verdict}: {finding.diagnosis}"
    return (
        f'<tr><td class="{verdict.replace(" ", "-")}">{MARKS[verdict]}</td><td>{finding.check}</td>'
        f"<td>{escape(finding.promise)}<br><span class=reason>{escape(reason)}</span></td></tr>"
    )
