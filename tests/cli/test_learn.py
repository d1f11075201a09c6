"""`headway learn` as a person would use and misuse it."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from command import headway, run
from headway import cache
from headway.learn import watch
from headway.learn.exercise import exercises, find
from headway.learn.folder import Folder

# On one worker, because starting the process that imports PyTorch takes seconds.
pytestmark = pytest.mark.xdist_group("grading")

SOFTMAX = find("softmax")
WRONG = SOFTMAX.solution.replace("axis=-1", "axis=0")
FIRST, SECOND = [*exercises().values()][:2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which `headway learn` was started once, without the page, until Ctrl-C."""
    monkeypatch.setitem(sys.modules, "starlette", None)
    watching = threading.Event()

    def saved(*arguments):
        watching.set()
        return original(*arguments)

    original = watch.saved
    monkeypatch.setattr(watch, "saved", saved)
    done = run(tmp_path, "learn", interrupt=watching.is_set)
    assert done.returncode == 0, done.stderr
    (tmp_path / "printed.txt").write_text(done.stdout)
    return tmp_path


def test_without_the_page_it_works_in_the_terminal(place):
    printed = (place / "printed.txt").read_text()
    assert f"learn: {len(exercises())} new files, one per exercise" in printed
    needed = "the guide needs starlette: pip install 'headway[explore]'"
    assert needed in " ".join(printed.split())
    assert len([*(place / "learn").glob("*.py")]) == len(exercises())


def test_grade(tmp_path):
    file, words = tmp_path / "answer.py", ("learn", "--grade", "answer.py", "--chapter")
    file.write_text(SOFTMAX.solution)
    assert "✓ Correct" in headway(tmp_path, *words, "softmax").stdout
    file.write_text(WRONG)
    done = headway(tmp_path, *words, "3", rc=1)
    for part in ("✗", "do not sum to 1", "answer.py:", "your matrix", "right matrix", "▸"):
        assert part in done.stdout
    done = headway(tmp_path, *words, "3", "--json", rc=1)
    grade = json.loads(done.stdout)
    assert [*grade] == ["passed", "fault", "message", "line", "code", "example", "printed"]
    assert (grade["passed"], grade["fault"]) == (False, "softmax-axis")
    assert grade["code"] in WRONG
    example = grade["example"]
    row, column = example["wrong"]
    assert example["yours"][row][column] != example["right"][row][column]


def test_two_sessions_in_one_folder(place):
    with cache.locked(place / "learn"):
        done = headway(place, "learn", "--no-open", rc=1)
    assert "another process uses learn: wait until it has ended, or stop it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_list(place):
    listed = json.loads(headway(place, "learn", "--list", "--json").stdout)
    assert [row["name"] for row in listed] == [*exercises()]
    assert [*listed[0]] == ["number", "name", "title", "state", "file"]
    assert [row["state"] for row in listed[:2]] == ["open", "locked"]
    printed = headway(place, "learn", "--list").stdout
    assert all(name in printed for name in exercises())
    assert json.loads(headway(place, "learn", "--list", "--json", "--folder", "no").stdout)


def test_check_and_progress(place):
    assert "Not started" in headway(place, "learn", "--check", "3", rc=1).stdout
    (place / "learn" / SOFTMAX.file).write_text(SOFTMAX.solution)
    checked = headway(place, "learn", "--check", "3").stdout
    assert f"1 of {len(exercises())} exercises passed" in checked
    progress = headway(place, "learn", "--progress").stdout
    assert "✓ softmax" in progress
    assert "Next: " in progress


def test_hints_and_solution(place):
    for number, left in ((1, "2 left"), (2, "1 left"), (3, "the last one"), (3, "the last one")):
        printed = headway(place, "learn", "--hint", "softmax").stdout
        assert f"Hint {number} of 3" in printed
        assert left in printed
    assert "3 hints" in headway(place, "learn", "--progress").stdout
    assert headway(place, "learn", "--solution", "3").stdout == SOFTMAX.solution


def test_reset(place):
    (place / "learn" / SOFTMAX.file).write_text("mine")
    printed = headway(place, "learn", "--reset", "3").stdout
    assert "your file is now learn/03_softmax.backup-1.py" in " ".join(printed.split())
    assert (place / "learn" / "03_softmax.backup-1.py").read_text() == "mine"
    assert headway(place, "learn", "--reset", "3").stdout.endswith(" is the stub again\n")


def test_reset_says_what_is_lost(place):
    files = Folder(place / "learn")
    for exercise in [*exercises().values()][:3]:
        files.mark_passed(exercise)
    files.next_hint(SOFTMAX)
    printed = " ".join(headway(place, "learn", "--reset", "3").stdout.split())
    assert "3 (softmax) is no longer passed" in printed
    assert "its hints start again with the first" in printed
    assert "4 (projections) is locked until you pass 3 (softmax) again" in printed


def test_in_the_folder_of_the_files(place):
    """The folder learn is not created a second time."""
    done = headway(place / "learn", "learn", "--check", "1", rc=1)
    assert "1 bottleneck  01_bottleneck.py" in done.stdout
    (place / "learn" / FIRST.file).unlink()
    done = headway(place / "learn", "learn", "--check", "1", rc=1)
    assert "folder 'learn' not found" in done.stderr


def test_a_damaged_progress_is_one_line(place):
    (place / "learn" / SOFTMAX.file).write_text(SOFTMAX.solution)
    (place / "learn" / "progress.json").write_text("{")
    printed = headway(place, "learn", "--progress").stdout
    assert "learn/progress.json is damaged; grading your files again" in printed
    assert "✓ softmax" in printed
    assert "damaged" not in headway(place, "learn", "--progress").stdout


def test_the_guide_as_one_file(tmp_path):
    assert "guide.html: " in headway(tmp_path, "learn", "--html", "guide.html").stdout
    assert "<article" in (tmp_path / "guide.html").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["guide.html"]


BAD = {
    "two commands": ("--check 3 --hint 3", "one command per call (got --check and --hint)"),
    "grade alone": ("--grade a.py", "--grade FILE and --chapter NAME must be given together"),
    "chapter alone": ("--chapter 3", "--grade FILE and --chapter NAME must be given together"),
    "json alone": ("--progress --json", "--json needs --list or --grade"),
    "name": ("--grade a.py --chapter softmx", "unknown exercise 'softmx'; did you mean 'softmax'?"),
    "number": ("--solution 99", "no exercise 99: they are 1 to 20"),
    "negative": ("--solution -1", "no exercise -1: they are 1 to 20"),
    "zero": ("--check 0", "no exercise 0: they are 1 to 20"),
    "far name": ("--check banana", "unknown exercise 'banana'. Available: bottleneck, similarity"),
    "no folder": ("--check 3 --folder no", "folder 'no' not found; run `headway learn` here first"),
    "hint without a folder": ("--hint 3", "folder 'learn' not found"),
    "progress without a folder": ("--progress", "folder 'learn' not found"),
    "a file as folder": ("--folder a.txt --no-open", "a.txt is a file; give another --folder"),
    "no such folder for html": ("--html no/guide.html", "no/guide.html: No such file"),
    "a file as folder of a check": ("--check 3 --folder a.txt", "a.txt is a file; give another"),
    "port": ("--port 80 --no-open", "port must be from 1024 to 65535 (got 80)"),
    "large port": ("--port 65536", "port must be from 1024 to 65535 (got 65536)"),
    "no port": ("--port 0", "port must be from 1024 to 65535 (got 0)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    words, message = BAD[name]
    done = headway(tmp_path, "learn", *words.split(), rc=1)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_the_page_follows_the_files(tmp_path):
    """The command in a process of its own: the page, a save, its grade, the end of a grade."""
    (tmp_path / "random.py").write_text("1 / 0")  # it hides no module of Python
    (tmp_path / "learn").mkdir()
    (tmp_path / "learn" / FIRST.file).write_text("1 / 0")  # graded at once, below the address
    command = [Path(sys.executable).parent / "headway", "learn", "--no-open", "--port", "18430"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        created, printed = process.stdout.readline(), process.stdout.readline()
        assert f"{len(exercises()) - 1} new files" in created
        address = printed.split()[0]

        def state():
            with urllib.request.urlopen(f"{address}progress") as answer:
                return json.load(answer)["exercises"][0]

        assert state()["state"] == "open"
        (tmp_path / "learn" / FIRST.file).write_text(FIRST.solution)
        end = time.monotonic() + 60
        while state()["state"] != "passed":
            assert time.monotonic() < end
            time.sleep(0.1)
        assert state()["grade"]["passed"]
        begun = tmp_path / "begun"
        loop = f"open({str(begun)!r}, 'w')\nwhile True: pass\n"
        (tmp_path / "learn" / SECOND.file).write_text(loop)
        while not begun.exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=20)[0]
        assert process.returncode == 0
        assert "✗" not in printed  # the grade that was stopped
    finally:
        process.kill()
        process.stdout.close()
