"""One run with one process, with two, and resumed by one process in JAX: the same losses.

    python examples/distributed.py

`make demo-distributed` runs it. It takes two minutes on two cores.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = ["train", "manual", "--tokenizer", "char", "--batch", "10", "--micro-batch", "2"]
TRAIN += ["--precision", "float32", "--evaluate-every", "20", "--save-every", "20"]


def headway(folder: Path, *words: str) -> None:
    """Run a command, and show it."""
    print(f"\n$ headway {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "headway", *words], cwd=folder, check=True)


def losses(folder: Path, name: str) -> list[float]:
    """The losses of a run, by step."""
    lines = (folder / "runs" / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        headway(folder, "plan", "small", "--gpus", "8", "--card", "h100")
        steps = ["--steps", "40", "--no-compile"]
        headway(folder, *TRAIN, *steps, "--name", "one")
        headway(folder, *TRAIN, *steps, "--name", "two", "--processes", "2")
        checkpoint = folder / "runs" / "two" / "checkpoints" / "step-000040"
        print(f"\nfiles of {checkpoint.name}, two of each kind, one from each process:")
        for file in sorted(checkpoint.iterdir()):
            print(f"  {file.name:<40} {file.stat().st_size:>9,} bytes")
        for run in ("one", "two"):
            headway(folder, "train", "--resume", run, "--steps", "60", "--engine", "jax")
        print("\nstep   one process    two processes, from step 41 one in JAX   difference")
        pairs = zip(losses(folder, "one"), losses(folder, "two"), strict=True)
        differences = [abs(one / two - 1) for one, two in pairs]
        for step in range(10, 61, 10):
            one, two = (losses(folder, run)[step - 1] for run in ("one", "two"))
            print(f"{step:>4}   {one:.7f}      {two:.7f} {differences[step - 1]:>37.1e}")
        print(f"\nall differ by less than 2e-5: {max(differences) < 2e-5}")


if __name__ == "__main__":
    main()
