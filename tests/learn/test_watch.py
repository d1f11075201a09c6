"""Each save is graded, and the session survives whatever is saved."""

import json
import time
from io import StringIO
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from rich.console import Console

from headway.learn import grading, watch
from headway.learn.exercise import exercises, find
from headway.learn.folder import Folder
from headway.learn.grades import Grade

pytestmark = pytest.mark.xdist_group("grading")

EVERY = [*exercises().values()]
FIRST, SECOND = EVERY[:2]


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "learn")
    folder.create()
    return folder


@pytest.fixture
def session(folder, monkeypatch):
    """A running session, which grades in this process: "right" passes, the rest does not."""

    def grade(path, exercise, **options):
        text = path.read_text() if path.exists() else "none"
        if text == "crash":
            raise RuntimeError("the process that grades answers did not start")
        return Grade(text == "right", None if text == "right" else "wrong", f"saw {text}.")

    monkeypatch.setattr(grading, "grade", grade)
    output, stop = StringIO(), Event()
    session = watch.Session(folder, Console(file=output, width=200))
    session.folder, session.printed = folder, output.getvalue
    thread = Thread(target=session.run, args=[stop])
    thread.start()
    wait(lambda: output.getvalue())
    yield session
    stop.set()
    thread.join()


def wait(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def save(session, exercise, text):
    session.folder.file(exercise).write_text(text)


def state(session, exercise):
    return next(row for row in session.state()["exercises"] if row["name"] == exercise.name)


def test_it_begins_with_what_to_do(session):
    assert f"Next: {FIRST.number} {FIRST.name}" in session.printed()
    assert f"write {FIRST.entry}, and save" in session.printed()
    assert session.state()["current"] == FIRST.name
    assert state(session, FIRST)["grade"] is None


def test_each_save_is_graded_and_a_pass_unlocks_the_next(session):
    save(session, FIRST, "wrong")
    wait(lambda: "✗ saw wrong." in session.printed())
    assert state(session, FIRST)["grade"]["fault"] == "wrong"
    assert state(session, SECOND)["state"] == "locked"
    save(session, FIRST, "right")
    wait(lambda: f"Next: {SECOND.number} {SECOND.name}" in session.printed())
    assert f"1 of {len(EVERY)} exercises passed" in session.printed()
    assert state(session, FIRST)["state"] == "passed"
    assert state(session, SECOND)["state"] == "open"
    assert session.state()["current"] == SECOND.name
    json.dumps(session.state(), allow_nan=False)


def test_a_passed_exercise_that_is_broken_stays_passed(session):
    save(session, FIRST, "right")
    wait(lambda: "✓" in session.printed())
    save(session, FIRST, "wrong")
    wait(lambda: "✗" in session.printed())
    assert state(session, FIRST)["state"] == "passed"
    assert state(session, FIRST)["grade"]["passed"] is False


def test_a_locked_exercise_is_graded_when_it_is_unlocked(session):
    save(session, SECOND, "right")
    unlocks = f"is locked until you pass {FIRST}; to grade it anyway: "
    wait(lambda: unlocks in session.printed())
    assert f"headway learn --check {SECOND.number}" in session.printed()
    save(session, FIRST, "right")
    wait(lambda: f"2 of {len(EVERY)} exercises passed" in session.printed())


def test_an_editor_that_replaces_the_file(session):
    new = session.folder.path / "new"
    new.write_text("right")
    new.rename(session.folder.file(FIRST))
    wait(lambda: "✓ saw right." in session.printed())


def test_it_survives_files_that_disappear_errors_and_damage(session):
    session.folder.file(FIRST).unlink()
    wait(lambda: "✗ saw none." in session.printed())
    save(session, FIRST, "crash")
    wait(lambda: "not graded: RuntimeError" in session.printed())
    (session.folder.path / "progress.json").write_text("{")
    assert session.state()["current"] == FIRST.name
    save(session, FIRST, "right")
    wait(lambda: f"1 of {len(EVERY)} exercises passed" in session.printed())
    assert "progress.json is damaged; grading your files again" in session.printed()


def test_a_locked_exercise_is_one_line_at_each_save(session):
    line = (
        "12 (cache) is locked until you pass 11 (positions) (now you are at 1 (bottleneck)); "
        "to grade it anyway: headway learn --check 12\n"
    )
    for number in (1, 2):
        save(session, EVERY[11], f"answer {number}")
        wait(lambda number=number: session.printed().count(line) == number)
    begun = len(session.printed())
    session.folder.file(EVERY[11]).unlink()
    save(session, FIRST, "wrong")
    wait(lambda: "✗ saw wrong." in session.printed())
    assert "is locked" not in session.printed()[begun:]


def test_the_folder_disappears_and_returns(session):
    """As if it were moved away and back: one line each."""
    save(session, FIRST, "wrong")
    wait(lambda: "✗ saw wrong." in session.printed())
    begun, away = len(session.printed()), session.folder.path.with_name("away")
    session.folder.path.rename(away)
    wait(lambda: "learn was deleted; put it back" in session.printed())
    away.rename(session.folder.path)
    wait(lambda: session.printed().count("✗ saw wrong.") == 2)
    lines = session.printed()[begun:].split("\n")
    assert "was deleted" in lines[0]
    assert lines[1].endswith("learn is back")
    assert [line for line in lines if line and line[0].isdigit()] == [lines[3]]  # one heading
    save(session, FIRST, "right")
    wait(lambda: f"1 of {len(EVERY)} exercises passed" in session.printed())


def test_a_file_that_is_still_written_is_not_graded(folder, monkeypatch):
    parts = ["a", "ab"]

    def sleep(seconds):  # meanwhile the editor writes
        if parts:
            folder.file(FIRST).write_text(parts.pop())

    stop = Event()
    saves = watch.saved(folder, stop)
    monkeypatch.setattr(watch, "INTERVAL", 0.001)
    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=sleep))
    folder.file(FIRST).write_text("")
    assert next(saves) == [FIRST]
    assert not parts


def test_a_session_continues_where_the_last_one_ended(folder, monkeypatch):
    monkeypatch.setattr(grading, "grade", lambda *_, **options: Grade(True, None, "Correct."))
    folder.file(FIRST).write_text("started")
    output, stop = StringIO(), Event()
    stop.set()
    watch.Session(folder, Console(file=output, width=200)).run(stop)
    assert f"1 of {len(EVERY)} exercises passed" in output.getvalue()
    for exercise in EVERY:
        folder.mark_passed(exercise)
    watch.Session(folder, Console(file=output, width=200)).run(stop)
    assert f"All {len(EVERY)} exercises passed" in output.getvalue()


def test_a_real_grade_after_a_save(folder):
    softmax = find("softmax")
    for exercise in EVERY[: EVERY.index(softmax)]:
        folder.mark_passed(exercise)
    output, stop = StringIO(), Event()
    thread = Thread(target=watch.Session(folder, Console(file=output, width=200)).run, args=[stop])
    thread.start()
    wait(output.getvalue)
    folder.file(softmax).write_text(softmax.solution)
    wait(lambda: "✓" in output.getvalue())
    stop.set()
    thread.join()


def test_a_save_cancels_the_running_grade(folder):
    """A grade of the learner's endless loop stops at the next save, which is graded."""
    output, stop = StringIO(), Event()
    session = watch.Session(folder, Console(file=output, width=200))
    thread = Thread(target=session.run, args=[stop])
    thread.start()
    wait(output.getvalue)
    loop = "open('begun', 'w')\nwhile True:\n    pass\n"
    folder.file(FIRST).write_text(loop.replace("begun", str(folder.path / "begun")))
    wait((folder.path / "begun").exists)
    folder.file(FIRST).write_text(FIRST.solution)
    wait(lambda: "✓" in output.getvalue())
    stop.set()
    thread.join()
    assert "the file changed, so this grade was stopped" in output.getvalue()
    assert "✗" not in output.getvalue()


@pytest.mark.parametrize("damaged", [False, True])
def test_nothing_is_printed_once_it_is_stopped(folder, damaged):
    """Neither if all answers are graded again."""
    begun = folder.path / "begun"
    folder.file(FIRST).write_text(f"open({str(begun)!r}, 'w')\nwhile True:\n    pass\n")
    if damaged:
        (folder.path / "progress.json").write_text("{")
    output, stop = StringIO(), Event()
    session = watch.Session(folder, Console(file=output, width=200))
    thread = Thread(target=session.run, args=[stop])
    thread.start()
    wait(begun.exists)
    before = output.getvalue()
    stop.set()
    thread.join(2)
    assert not thread.is_alive()
    assert output.getvalue() == before
