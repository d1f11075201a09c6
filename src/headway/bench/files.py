"""Where the results of a run are written: a folder of its own, never over an earlier one."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from headway.bench.page import page
from headway.bench.plots import plots
from headway.bench.report import Report
from headway.cache import whole


def free_folder(output: Path | None) -> Path:
    """The folder to write to, made: the one named, or bench/ and the time.

    Raises ValueError when there are results in it already.
    """
    if output is not None:
        if any((output / name).exists() for name in ("bench.json", "tune.json")):
            raise ValueError(f"there are results in {output} already: name another folder")
        output.mkdir(parents=True, exist_ok=True)
        return output
    name, number = datetime.now().strftime("%Y-%m-%d-%H%M%S"), 1
    while True:
        folder = Path("bench") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def write(report: Report, folder: Path) -> None:
    """bench.json, index.html, and of a sweep time.png, time.svg, memory.png and memory.svg."""
    pictures = [*plots(report)]
    for plot in pictures:
        (folder / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
        (folder / f"{plot.name}.png").write_bytes(plot.png)
    write_json(report.as_dict(), folder / "bench.json")
    (folder / "index.html").write_text(page(report, pictures), encoding="utf-8")


def write_json(found: dict[str, Any], file: Path) -> None:
    """A report's values; what was there before stays whole until this is."""
    with whole(file) as aside:
        text = json.dumps(found, indent=2, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")
