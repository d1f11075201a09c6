"""The output of `headway bench`: a new folder with JSON, an HTML page and plots."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from headway.bench import pages
from headway.bench.html import page
from headway.bench.plots import plots
from headway.bench.results import Results


def free_folder(output: Path | None) -> Path:
    """Create and return the folder: the given one, or bench/ with the time.

    Raises ValueError if it has results.
    """
    if output is not None:
        if any((output / name).exists() for name in ("bench.json", "tune.json")):
            raise ValueError(f"{output} already has results: choose another folder")
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


def write(results: Results, folder: Path) -> None:
    """Write bench.json, index.html and the plots."""
    pictures = [*plots(results)]
    write_json(results.as_dict(), folder / "bench.json")
    pages.write(folder, {"index.html": page(results, pictures)}, pictures)


def write_json(values: dict[str, Any], file: Path) -> None:
    """Write values as JSON; a reader never sees a part of the file."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    pages.write(file.parent, {file.name: text}, ())
