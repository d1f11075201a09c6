"""Tests that every file that docs/tour.md links exists and defines the name next to the link."""

import ast
import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
# [file](path), `name`  or, in a table, [file](path) | `name`
STOPS = re.findall(r"\[([\w/\\]+\.py)\]\(([^)]+)\)(?:, | \| )`(\w+)`", TOUR)


def defined(file):
    """The functions, classes and variables at the top level of a file."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (ast.unparse(target) for target in node.targets)
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target)


def test_every_stop_of_the_tour_exists():
    assert len(STOPS) > 20
    for label, link, name in STOPS:
        file = (ROOT / "docs" / link).resolve()
        assert file == ROOT / "src" / "headway" / label.replace("\\", "")
        assert name in set(defined(file)), f"{label} does not define {name}"


def test_every_link_is_a_stop_with_a_name():
    links = re.findall(r"\]\((\.\./src/[^)]+)\)", TOUR)
    assert len(links) == len(STOPS)


def test_a_walk_has_at_most_ten_files():
    for title in ("From a token to a logit", "From a text to the loss"):
        walk = TOUR.partition(f"## {title}")[2].partition("\n## ")[0]
        numbered = [line for line in walk.splitlines() if re.match(r"\d+\. ", line)]
        files = {link for line in numbered for link in re.findall(r"\]\(([^)]+)\)", line)}
        assert 3 <= len(files) <= 10


def test_a_step_runs_the_files_of_the_walk(tmp_path):
    """The walk from a text to the loss names the files whose functions really run, in order."""
    import headway

    (tmp_path / "text.txt").write_text("It was the best of times.\n" * 40)
    walk = TOUR.partition("## From a text to the loss")[2]
    expected = re.findall(r"^\d+\. \[[^]]+\]\(\.\./src/headway/([^)]+)\)", walk, re.MULTILINE)
    for file in expected:  # so that importing them is not recorded
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        importlib.import_module(f"headway.{name}")
    entered = []

    def profile(frame, event, argument):
        file = frame.f_code.co_filename.partition("/src/headway/")[2]
        if event == "call" and file in expected and file not in entered:
            entered.append(file)

    sizes = {"context": 8, "width": 16, "layers": 1, "heads": 2, "tokenizer": "char"}
    sys.setprofile(profile)
    try:
        headway.train(str(tmp_path / "text.txt"), runs=str(tmp_path), steps=1, **sizes)
    finally:
        sys.setprofile(None)
    assert set(entered) == set(expected)
    loss = ["torch/train.py", "torch/tasks.py", "torch/gpt.py"]
    assert [file for file in entered if file not in loss][:6] == expected[:6]
