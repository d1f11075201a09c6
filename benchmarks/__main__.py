"""All benchmarks on a CPU, and the tables of the pages from their results.

    python -m benchmarks                               # all, up to an hour on two cores
    python -m benchmarks --only train_step startup     # some
    python -m benchmarks --tables                      # only write the tables again

Each benchmark is a process of its own, and writes docs/bench/NAME.json; then the tables of the
pages are written. `git diff docs` shows what became slower or faster. Some run only if they are
named: tune, which also replaces the table by which `attend` chooses on this machine (9 minutes),
and large_text, which writes 3 GB to the disk (15 minutes).
A GPU has a command of its own, `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks import report

DEFAULT = ["startup", "overhead", "train_step", "generation", "explorer", "engines", "sweep"]
DEFAULT += ["time_to_good", "plan", "plan_cluster", "processes"]
ALL = [*DEFAULT, "tune", "large_text"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ALL, default=DEFAULT, metavar="NAME")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    chosen = parser.parse_args()
    failed = []
    for name in () if chosen.tables else chosen.only:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += ["--output", str(report.BENCH / f"{name}.json")]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        else:
            report.write_pages(name)
    if chosen.tables:
        report.write_pages()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
