"""How long the commands take to start, next to Python alone.

    python -m benchmarks.startup --output docs/bench/startup.json

Each round runs every command once, in random order. The first round does not count.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks import report
from benchmarks.sides import in_turns, machine

HEADWAY = str(Path(sys.executable).with_name("headway"))
PYTHON = "python -c pass"
COMMANDS = {
    PYTHON: [sys.executable, "-c", "pass"],
    "headway --help": [HEADWAY, "--help"],
    "headway train --help": [HEADWAY, "train", "--help"],
    "headway generate --help": [HEADWAY, "generate", "--help"],
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    options = report.options(__doc__, rounds=15).parse_args()
    sides = {name: partial(seconds, command) for name, command in COMMANDS.items()}
    in_turns(sides, 1)
    spent = in_turns(sides, options.rounds)
    rows = [
        {
            "command": f"`{name}`",
            "s": report.middle(times),
            "quartiles, s": report.quartiles(times),
            "beyond Python, s": report.middle(
                [time - python for time, python in zip(times, spent[PYTHON], strict=True)]
            ),
        }
        for name, times in spent.items()
    ]
    report.save({"machine": machine(), "rows": rows}, options.output)


if __name__ == "__main__":
    main()
