"""Run every family of transformers in all situations and write docs/observatory.md.

`python -m observatory` continues after families that raise, crash or hang, and resumes: results are
kept in runs/observatory.jsonl and used again for the same versions. `--again` starts anew.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from headway.hf.families import WatchedFamily, families, tiny_model
from headway.hf.situations import SITUATIONS, Cell, observe

ROOT = Path(__file__).parents[2]
PAGE, STORE = ROOT / "docs" / "observatory.md", ROOT / "runs" / "observatory.jsonl"
VERDICTS = ("ok", "wrong", "not finite", "raised", "not applicable")
MARKS = ("<!-- observatory: begin -->", "<!-- observatory: end -->")
VERSIONS = f"transformers {transformers.__version__}, torch {torch.__version__}"
SECONDS = 300  # for one family; `flex` compiles for each mask
FLEX = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt_neox", "olmo2")
FLEX += ("granite",)
UNCACHED = ("whole text", "left padding", "right padding", "packed documents", "fully masked row")


def examined(family: WatchedFamily) -> dict[str, Any]:
    """The result of one family: its cells, or why there are none."""
    record: dict[str, Any] = {"versions": VERSIONS, **family._asdict()}
    try:
        model = tiny_model(family)
        cells = observe(model, family.task)
        if family.name in FLEX:
            torch._dynamo.reset()  # PyTorch stops to compile after eight masks
            cells += observe(
                model,
                family.task,
                implementations=("flex",),
                dtypes=("float32",),
                situations=UNCACHED,
            )
        return record | {"cells": [asdict(cell) for cell in cells]}
    except Exception as error:
        return record | {"reason": " ".join(str(error).split())[:200]}


def _work(connection: Any) -> None:
    torch.set_num_threads(1)
    by_name = {family.name: family for family in families()}
    while (name := connection.recv()) is not None:
        connection.send(examined(by_name[name]))


class Worker:
    """A process that examines one family after another; a new one replaces it if it is lost."""

    def __init__(self) -> None:
        self.process: Any = None

    def __call__(self, family: WatchedFamily, seconds: float = SECONDS, work: Any = _work) -> Any:
        """The result of a family, also if the process crashes or hangs."""
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=work, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.connection.send(family.name)
            if self.connection.poll(seconds):
                return self.connection.recv()
            reason = f"it did not end within {seconds} seconds"
        except (EOFError, OSError):
            reason = "the process crashed"
        self.process.kill()
        self.process = None
        return {"versions": VERSIONS, **family._asdict(), "reason": reason, "is_lost": True}

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.connection.send(None)
            self.process.join()


def stored(path: Path = STORE) -> dict[str, dict[str, Any]]:
    """The results of earlier runs with the same versions, by family.

    Families whose process crashed or did not end are left out, so that they are tried again.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {r["name"]: r for r in records if r["versions"] == VERSIONS and "is_lost" not in r}


def run(
    wanted: Iterable[WatchedFamily], path: Path = STORE, worker: Any = Worker, processes: int = 2
) -> dict[str, dict[str, Any]]:
    """Examine the families that have no stored result, and return all results."""
    results = stored(path)
    left = [family for family in wanted if family.name not in results]
    path.parent.mkdir(exist_ok=True)
    workers = [worker() for _ in range(processes)]

    def share(number: int) -> None:
        for family in left[number::processes]:
            start = time.monotonic()
            record = workers[number](family)
            record["seconds"] = round(time.monotonic() - start, 1)
            results[family.name] = record
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{len(results)} {family.name}: {record['seconds']} s", file=sys.stderr)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(share, range(processes)))
    for each in workers:
        each.close()
    return results


def cells_of(record: dict[str, Any]) -> list[Cell]:
    return [Cell(**cell) for cell in record.get("cells", [])]


def wrong(record: dict[str, Any]) -> list[Cell]:
    return [c for c in cells_of(record) if c.verdict not in ("ok", "not applicable")]


def _where(cells: list[Cell]) -> str:
    """The implementations with their data types; those with the same data types together."""
    by_types: dict[str, list[str]] = {}
    for implementation in dict.fromkeys(cell.implementation for cell in cells):
        types = [cell.dtype for cell in cells if cell.implementation == implementation]
        by_types.setdefault(", ".join(types), []).append(implementation)
    return "; ".join(f"{', '.join(names)} in {types}" for types, names in by_types.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(results: dict[str, dict[str, Any]]) -> str:
    """The summary, the wrong cells by pattern, and a row for each family."""
    records = [results[name] for name in sorted(results)]
    run_ones = [record for record in records if "cells" in record]
    cells = [cell for record in run_ones for cell in cells_of(record)]
    count = {v: sum(c.verdict == v for c in cells) for v in VERDICTS}
    minutes = sum(record.get("seconds", 0) for record in records) / 60
    verdicts = ", ".join(f"{count[v]} {v}" for v in VERDICTS)
    lines = [
        f"{VERSIONS}: {len(records)} families, {len(run_ones)} of them run; {len(cells)} cells: "
        f"{verdicts}. All processes together took {minutes:.0f} minutes.",
        "",
        "## What is wrong",
        "",
        "| situation | result | where | families |",
        "|---|---|---|---|",
    ]
    patterns: dict[tuple[str, str, str], list[str]] = {}
    for record in run_ones:
        for situation, verdict in dict.fromkeys((c.situation, c.verdict) for c in wrong(record)):
            same = [c for c in wrong(record) if (c.situation, c.verdict) == (situation, verdict)]
            key = (situation, verdict, _where(same))
            patterns.setdefault(key, []).append(record["name"])
    for key, names in sorted(patterns.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"| {' | '.join(key)} | {len(names)}: {', '.join(names)} |")
    lines += ["", "## All families", ""]
    head = ["family", "class", *SITUATIONS]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for record in run_ones:
        row = [record["name"], f"`{record['model']}`"]
        for situation in SITUATIONS:
            of_situation = [c for c in cells_of(record) if c.situation == situation]
            bad_ones = [c for c in of_situation if c.verdict not in ("ok", "not applicable")]
            if bad_ones:
                row.append(f"**{_where(bad_ones)}**")
            else:
                row.append("✓" if any(c.verdict == "ok" for c in of_situation) else "-")
        lines.append(f"| {' | '.join(row)} |")
    why: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.verdict == "not applicable":
            detail = "it does not run in float64" if "in float64 it" in cell.detail else cell.detail
            why.setdefault(_cell(detail), []).append(cell)
    lines += ["", "Not applicable (-):", "", "| reason | cells |", "|---|---|"]
    for reason, found in sorted(why.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {reason} | {len(found)} |")
    lines += ["", "Not run:", "", "| reason | families |", "|---|---|"]
    reasons: dict[str, list[str]] = {}
    for record in records:
        if "reason" in record:
            reasons.setdefault(_cell(record["reason"]), []).append(record["name"])
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {reason} | {', '.join(names)} |")
    return "\n".join(lines)


def main() -> None:
    if "--again" in sys.argv:
        STORE.unlink(missing_ok=True)
    results = run(families())
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    text = "\n".join([before + MARKS[0], table(results), MARKS[1] + after])
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
