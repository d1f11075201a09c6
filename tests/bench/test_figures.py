"""Figures on the pages are written from JSON files by `python -m benchmarks`, not by hand."""

import re

import pytest
from benchmarks import report

WORDS = "half an?|one|two|three|four|five|six|seven|eight|nine|ten|twenty|hundred|thousand"
NUMBER = rf"(?:\d[\d,.]*|\b(?:{WORDS})\b)"
TIME = (
    r"(?:(?:[mµn]?s|(?:milli|micro)?seconds?|minutes?|hours?|times"
    r"|(?:tokens|characters)(?:/s| per second)|[KMGT]i?B|(?:mega|giga)bytes?|[GT]FLOP)\b|×(?! \d))"
)
UNIT = rf"(?:{TIME}|(?:percent|nats)\b|×|%)"
SHARE = (
    r"\b(?:half|twice|thirds?|quarter) (?:of )?(?:as|the) (?:time|memory|speed|fast|long|much)\b"
)
FIGURE = re.compile(
    rf"{NUMBER}(?: to {NUMBER})?[ -]?{UNIT}"
    r"|\b(?:loss|MFU|ratio|speed) (?:of |is |= )\d[\d.]*"
    rf"|{SHARE}"
    r"|(?<=\|) *\d[\d,.]* *(?=\|)"  # a cell of a table
)
# On the pages that are not about speed, losses and counts come from other reports.
SPEED = re.compile(rf"{NUMBER}(?: to {NUMBER})?[ -]?{TIME}|{SHARE}")
ALLOWED = {
    "ten minutes": "a setting: from which time on `headway train` compiles on a CPU",
    "five minutes": "a setting: from which time on `headway train` compiles on a GPU",
    "loss of 1.90": "a setting: the loss that benchmarks/time_to_good.py waits for",
    "three times": "README.md: an exercise is graded three times",
    "two minutes": "about how long `make demo-distributed` takes",
    "six hours": "a limit: how long processes wait for the data",
}
DOCS = report.BENCH.parent
OTHERS = [page for page in (*DOCS.glob("*.md"), DOCS / "lab/README.md") if page not in report.PAGES]
OTHERS = [page for page in (*OTHERS, DOCS.parent / "CONTRIBUTING.md") if page.name != "ladder.md"]
# Of ladder.md, which `make` writes, tests/learn/test_typed_numbers.py compares the figures.
SETTINGS = {
    "CONTRIBUTING.md": {"0.5 s": "a rule"},
    "check.md": {"two minutes": "a limit"},
    "diff.md": {"eight times": "a limit"},
    "explorer.md": {"64 MiB": "a limit"},
    "lab/README.md": {"three times": "a setting of an experiment"},
    "lab.md": {
        "ten minutes": "a setting: what --quick is made for",
        "three times": "a setting of an experiment",
        "half the speed": "docs/lab/normalizer/report.md",
    },
    "learn.md": {
        "ten minutes": "a rule",
        "10 seconds": "a limit",
        "three times": "a limit",
        "2 GB": "a limit",
    },
    "limitations.md": {
        "24 MB": "a limit",
        "256 MiB": "a limit",
        "1 GB": "what was tested",
        "two minutes": "a limit",
        "ten times": "a condition",
        "eight times": "a limit",
        "60 s": "a limit",
        "160 MiB": "a limit",
        "24 MiB": "a limit",
        "2 GiB": "a limit",
        "2 GB": "what was tested",
        "1.1 times": "a target",
    },
    "observatory.md": {"four times": "a limit", "12 minutes": "written by `make observatory`"},
    "training.md": {"256 MiB": "a limit", "100 MB": "a limit"},
}


def prose(page):
    """A page without its generated regions and code blocks."""
    return re.sub(r"^```.*?^```", "", report.REGION.sub("", page), flags=re.DOTALL | re.MULTILINE)


def figures(page, pattern=FIGURE):
    return [found[0].strip() for found in pattern.finditer(prose(page))]


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_table_is_what_its_json_file_holds(page):
    text = page.read_text()
    assert report.filled(text) == text, "run `python -m benchmarks --tables`"


def test_every_json_file_is_on_a_page():
    regions = [f["name"] for page in report.PAGES for f in report.REGION.finditer(page.read_text())]
    assert {file.stem for file in report.BENCH.glob("*.json")} <= {*regions}
    assert len(regions) == len({*regions})
    begun = sum(page.read_text().count("<!-- begin") for page in report.PAGES)
    assert begun == len(regions)  # a marker with a mistake is no region


def test_no_figure_is_typed_by_hand():
    typed = [figure for page in report.PAGES for figure in figures(page.read_text())]
    assert {*typed} == {*ALLOWED}


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.name)
def test_no_speed_is_typed_by_hand_on_any_other_page(page):
    name = page.relative_to(DOCS).as_posix() if DOCS in page.parents else page.name
    assert {*figures(page.read_text(), SPEED)} == {*SETTINGS.get(name, ())}


def test_an_edited_number_and_a_new_file_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "BENCH", tmp_path)
    page = "<!-- begin: new, written by python -m benchmarks -->\n<!-- end -->\n"
    assert report.filled(page) == page  # not measured yet
    (tmp_path / "new.json").write_text('{"rows": [{"what": "a", "ms": 1234.5, "GiB": null}]}')
    full = report.filled(page)
    assert "| what | ms |\n|---|---|\n| a | 1,234 |\n" in full
    assert report.filled(full) == full
    edited = full.replace("1,234", "1,233")
    assert report.filled(edited, "other") == edited
    assert report.filled(edited) == full


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it reaches 1,160 tokens per second", ["1,160 tokens per second"]),
        ("a step of 9 ms took 1.4 s", ["9 ms", "1.4 s"]),
        ("four to six times as fast, or 2.67×", ["four to six times", "2.67×"]),
        ("half a minute, 27.8 MB and 15%", ["half a minute", "27.8 MB", "15%"]),
        ("a loss of 1.857, twice as fast", ["loss of 1.857", "twice as fast"]),
        ("| before | 447 |", ["447"]),
        ("4 layers of width 128, 64 tokens, batch 12, 2 cores, top-k 200", []),
        ("```\nheadway bench   # 22 minutes\n```", []),
    ],
)
def test_what_counts_as_a_figure(text, expected):
    assert figures(text) == expected
