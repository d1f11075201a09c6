"""What the README says works, and the examples run."""

import re
import runpy
from pathlib import Path

import pytest

from headway.ladder.rungs import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_snippets_run_one_after_another():
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 5
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_the_examples_run(example, capsys):
    runpy.run_path(str(example), run_name="__main__")
    assert "True" in capsys.readouterr().out


def test_the_tree_names_every_room():
    rooms = {path.name for path in (ROOT / "src" / "headway").iterdir()}
    for name in rooms - {"__pycache__", "__init__.py", "py.typed"}:
        assert re.search(rf"^  {re.escape(name)}/? ", README, re.MULTILINE), name


def test_the_ladder_is_the_table_of_the_rungs():
    assert markdown() in README


def test_the_commands_are_there():
    from headway.cli.main import app

    for verb in re.findall(r"^headway (\w+)", README, re.MULTILINE):
        assert verb in app


def test_the_doctors_numbers_are_true():
    from headway.check import CHECKS
    from mutants import MUTANTS

    assert f"{len(CHECKS)} checks" in README
    assert f"{len(MUTANTS)} attentions" in README
