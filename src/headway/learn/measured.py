"""What the lab measured, as the guide shows it: curves and the sentences of the reports.

`python -m headway.learn.measured` takes them from `docs/lab/*/report.json` of a checkout and writes
the files in the folder `measured`.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def drawn(options: Mapping[str, Any]) -> str:
    """Return the curves and sentences of a report as HTML."""
    return f'<figure class="measured"><p>{escape(options["report"])}</p></figure>\n'
