"""Where a report is written."""

from __future__ import annotations

import json
from pathlib import Path

from headway.cache import whole
from headway.lab.page import page, pictures
from headway.lab.report import Report, as_dict, markdown

RUNS = "runs"  # the folder of the runs, of all experiments


def write(report: Report, folder: Path) -> Path:
    """index.html, report.md, report.json and the curves as SVG and PNG; returns the folder.

    What was there before is replaced: the runs are what must not be lost.
    """
    place = folder / report.experiment.folder
    place.mkdir(parents=True, exist_ok=True)
    drawn = [*pictures(report)]
    for each in drawn:
        (place / f"{each.name}.svg").write_text(each.svg, encoding="utf-8")
        (place / f"{each.name}.png").write_bytes(each.png)
    texts = {
        "index.html": page(report, drawn),
        "report.md": markdown(report),
        "report.json": json.dumps(as_dict(report), allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        with whole(place / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return place
