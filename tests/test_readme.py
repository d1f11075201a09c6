"""The README and the pages of docs/: their code runs, their commands and links exist."""

import re
import runpy
from pathlib import Path

import pytest

from headway.ladder import rungs, why

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in (README, *DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
}


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/jax.md"])
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SLOW = {"distributed.py": pytest.mark.slow}  # six trainings, two minutes


@pytest.mark.parametrize(
    "example", [pytest.param(p, id=p.name, marks=SLOW.get(p.name, ())) for p in EXAMPLES]
)
def test_the_examples_run(example, capsys):
    runpy.run_path(str(example), run_name="__main__")
    assert "True" in capsys.readouterr().out


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_the_index_lists_every_page():
    for file in DOCS:
        assert file.name == "README.md" or f"]({file.name})" in PAGES["docs/README.md"], file.name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """To files that exist, and to headings with that name."""
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith(("http:", "https:")):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


def test_the_layout_names_every_folder():
    names = {path.name for path in (ROOT / "src" / "headway").iterdir()}
    for name in names - {"__pycache__", "__init__.py", "py.typed"}:
        row = rf"^  {re.escape(name)}/? "
        assert re.search(row, PAGES["CONTRIBUTING.md"], re.MULTILINE), name


def test_the_ladder_is_the_table_of_the_rungs():
    assert rungs.markdown() in PAGES["docs/ladder.md"]


def test_the_page_of_the_ladder_has_the_texts_of_why():
    assert PAGES["docs/ladder.md"].endswith(why.markdown() + "\n")


def test_the_commands_exist():
    from headway.cli.main import app

    for page, text in PAGES.items():
        for command in re.findall(r"^headway (\w+)", text, re.MULTILINE):
            assert command in app, f"{page}: headway {command}"


def test_the_options_exist():
    """Every option that a page gives to a command in a block of code or in backticks."""
    from headway.cli.main import app

    for page, text in PAGES.items():
        lines = re.findall(r"^(headway \w.*)$|`(headway \w[^`]*)`", text, re.MULTILINE)
        for line in ("".join(result).partition("#")[0] for result in lines):
            command, *rest = line.split()[1:]
            help_app = app[command]
            if command == "translate" and rest and rest[0] in ("train", "eval", "race"):
                help_app = help_app[rest[0]]
            arguments = help_app.assemble_argument_collection()
            known = {name for argument in arguments for name in argument.names}
            for option in re.findall(r"(?<=\s)--[a-z-]+", line):
                assert option in known | {"--help"}, f"{page}: {line}"
