"""Tests that every file that docs/tour.md links exists and defines the name next to the link."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
# [file](path), `name`  or, in a table, [file](path) | `name`
STOPS = re.findall(r"\[([\w/]+\.py)\]\(([^)]+)\)(?:, | \| )`(\w+)`", TOUR)


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
        assert file == ROOT / "src" / "headway" / label
        assert name in set(defined(file)), f"{label} does not define {name}"


def test_every_link_is_a_stop_with_a_name():
    links = re.findall(r"\]\((\.\./src/[^)]+)\)", TOUR)
    assert len(links) == len(STOPS)


def test_the_walk_from_a_token_to_a_logit_has_at_most_ten_files():
    walk = TOUR.partition("## From a token to a logit")[2]
    assert len({link for _, link, _ in STOPS if link in walk}) <= 10
