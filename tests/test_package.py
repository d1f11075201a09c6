"""The wheel, installed alone, runs every tool; a missing extra is one line that names it."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import headway
from command import headway as run_headway
from headway.extras import EXTRAS

ROOT = Path(__file__).parents[1]
SOURCE = Path(headway.__file__).parent
WORDS = "The cat sits on the mat and looks at the old dog. "
EXPERIMENT = """
question = "Do two heads help?"
text = "text.txt"
quick = { seeds = 1, steps = 2 }
model = { width = 8, layers = 1, context = 16 }
training = { evaluate_every = 2, evaluation_windows = 2, batch = 1 }
[[variants]]
name = "one"
[[variants]]
name = "two"
model.attention.heads = 2
"""
# Run by one process, since each new one takes seconds to import PyTorch.
BARE = """
ladder causal
train text.txt --name run --tokenizer char --context 16 --width 8 --heads 2 --layers 1 --steps 2
generate run The
trace run The -o trace.safetensors
explore run The --html page.html
check run
runs
info run
learn --list
learn --html guide.html
translate train --pairs pairs.tsv --name german --steps 2 --batch 100 --width 8 --vocabulary 300
"""
EXTENDED = """
bench --tokens 8,16 --width 8 --heads 1 --batch 1 --kernels plain --seconds 0.05 --output bench
compare experiment.toml
"""
SCRIPT = f"""
import shlex, sys
from importlib.machinery import PathFinder
from pathlib import Path
import headway
from headway.cli.main import main

assert Path(headway.__file__).is_relative_to(sys.argv[1]), headway.__file__

def run(commands):
    for line in commands.strip().splitlines():
        print("headway", line, flush=True)
        sys.argv = ["headway", *shlex.split(line)]
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                raise

class WithoutExtras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        optional = {{module for modules in {EXTRAS!r}.values() for module in modules}}
        return None if name in optional else PathFinder.find_spec(name, path, target)

if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
    run({BARE!r})
    sys.meta_path[sys.meta_path.index(WithoutExtras)] = PathFinder
    run({EXTENDED!r})
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built offline from a copy of the sources, without the build files of an earlier build."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for file in SOURCE.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            copy = source / "src" / "headway" / file.relative_to(SOURCE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    pip("wheel", source, "--no-build-isolation", "--wheel-dir", source)
    (file,) = source.glob("*.whl")
    return file


def pip(command, target, *options):
    line = [sys.executable, "-m", "pip", command, target, "--no-deps", "--no-index", *options]
    subprocess.run([*line, "--quiet", "--disable-pip-version-check"], check=True)


def test_the_wheel_has_every_file_of_the_package(wheel):
    expected = {
        f"headway/{file.relative_to(SOURCE).as_posix()}"
        for file in SOURCE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    kinds = {Path(name).suffix for name in expected}
    assert {".toml", ".json", ".md", ".js", ".css", ".html", ".typed"} <= kinds
    assert expected <= {*zipfile.ZipFile(wheel).namelist()}


def test_the_installed_wheel_runs_every_tool(wheel, tmp_path):
    target, place = tmp_path / "installed", tmp_path / "work"
    pip("install", wheel, "--target", target)
    place.mkdir()
    (place / "text.txt").write_text(WORDS * 40)
    (place / "pairs.tsv").write_text(
        "".join(f"the cat sees {n} dogs\tdie Katze sieht {n} Hunde\n" for n in range(60))
    )
    (place / "experiment.toml").write_text(EXPERIMENT)
    (place / "tools.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(target), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "tools.py", target],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = ["trace.safetensors", "page.html", "bench/index.html", "runs/german/config.json"]
    for name in (*written, "lab/experiment-text-quick/index.html"):
        assert (place / name).is_file(), f"{name}: {done.stdout}{done.stderr}"


def test_the_table_of_extras_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        assert {line.partition(">")[0] for line in optional[extra]} == {*modules}
    assert optional["all"] == [f"headway[{','.join(EXTRAS)}]"]
    required = {line.partition(">")[0] for line in project["dependencies"]}
    assert not required & {module for modules in EXTRAS.values() for module in modules}


@pytest.mark.parametrize(
    ("module", "command", "message"),
    [
        ("uvicorn", ["explore", "--ladder"], "the explorer needs uvicorn: {}[explore]'"),
        ("optax", ["train", "text.txt", "--engine", "jax"], "the JAX engine needs optax: {}[jax]'"),
        ("scipy", ["compare", "scale"], "the lab needs scipy: {}[lab]'"),
        ("matplotlib", ["climb", "text.txt"], "the lab needs matplotlib: {}[lab]'"),
        ("matplotlib", ["bench"], "the bench needs matplotlib: {}[plots]'"),
        ("sacrebleu", ["translate", "race"], "the race needs sacrebleu: {}[translate]'"),
        ("scipy", ["translate", "race"], "the race needs scipy: {}[lab]'"),
        (
            "tensorboard",
            ["train", "text.txt", "--context", "16", "--tensorboard"],
            "--tensorboard needs tensorboard: {}[tensorboard]'",
        ),
    ],
)
def test_a_missing_extra_is_one_line(module, command, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "text.txt").write_text(WORDS * 40)
    expected = message.format("pip install 'headway")
    assert run_headway(tmp_path, *command, rc=1).stderr == f"headway: {expected}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]  # nothing was begun
