"""The learner's folder: nothing of the learner is overwritten or lost."""

import json
from itertools import pairwise

import pytest

from headway.learn.exercise import exercises, find
from headway.learn.folder import Folder, Progress, stub

SOFTMAX = find("softmax")
EVERY = [*exercises().values()]


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "learn")
    folder.create()
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.path.iterdir()}


def test_one_file_per_exercise_with_its_task(folder):
    assert len(contents(folder)) == len(EVERY) > 1
    text = folder.file(SOFTMAX).read_text()
    assert text.startswith("# Exercise 3: ")
    assert text.endswith(SOFTMAX.stub)
    assert "headway learn --hint 3" in text
    for exercise in EVERY:
        compile(stub(exercise), exercise.file, "exec")
        assert max(map(len, stub(exercise).splitlines())) <= 100


def test_what_exists_is_kept_and_what_is_missing_is_added(folder):
    folder.file(SOFTMAX).write_text("mine")
    (folder.path / "notes.txt").write_text("mine too")
    folder.file(EVERY[-1]).unlink()
    assert folder.create() == [folder.file(EVERY[-1])]
    assert contents(folder)["notes.txt"] == b"mine too"
    assert contents(folder)[SOFTMAX.file] == b"mine"
    assert folder.create() == []


def test_links_are_kept(folder, tmp_path):
    file = folder.file(SOFTMAX)
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere.py")  # which does not exist
    assert folder.create() == []
    assert not (tmp_path / "elsewhere.py").exists()


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "learn").write_text("mine")
    with pytest.raises(ValueError, match="is a file; give another --folder"):
        Folder(tmp_path / "learn").create()
    assert (tmp_path / "learn").read_text() == "mine"


def test_reset_keeps_every_version(folder):
    assert folder.reset(SOFTMAX) is None  # the stub needs no backup
    for number in (1, 2):
        folder.file(SOFTMAX).write_text(f"version {number}")
        kept = folder.reset(SOFTMAX)
        assert kept.name == f"03_softmax.backup-{number}.py"
        assert kept.read_text() == f"version {number}"
        assert folder.file(SOFTMAX).read_text() == stub(SOFTMAX)
    assert len(contents(folder)) == len(EVERY) + 3  # with the progress
    folder.file(SOFTMAX).unlink()
    assert folder.reset(SOFTMAX) is None
    assert folder.file(SOFTMAX).exists()


def test_reset_forgets_the_progress_in_this_exercise_alone(folder):
    other = next(exercise for exercise in EVERY if exercise != SOFTMAX)
    for exercise in (SOFTMAX, other):
        folder.mark_passed(exercise)
        folder.next_hint(exercise)
    folder.reset(SOFTMAX)
    assert folder.progress() == Progress((other.name,), {other.name: 1})


def test_passing_unlocks_the_next_one():
    progress = Progress()
    assert progress.current == EVERY[0]
    assert [progress.state(exercise) for exercise in EVERY[:2]] == ["open", "locked"]
    for exercise, following in pairwise(EVERY):
        progress = Progress((*progress.passed, exercise.name))
        assert progress.state(exercise) == "passed"
        assert progress.state(following) == "open"
        assert progress.current == following
    assert Progress(tuple(exercises())).current is None
    skipped = Progress((EVERY[1].name,))
    assert skipped.current == EVERY[0]
    assert skipped.state(EVERY[0]) == "open"


def test_hints_come_in_order_and_the_last_one_stays(folder):
    assert [folder.next_hint(SOFTMAX) for _ in range(5)] == [1, 2, 3, 3, 3]
    assert Folder(folder.path).progress().hints == {"softmax": 3}


def test_a_pass_is_recorded_once(folder):
    folder.mark_passed(SOFTMAX)
    folder.mark_passed(SOFTMAX)
    assert folder.progress().passed == ("softmax",)


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", "{}", '{"passed": 1, "hints": {}}', '{"passed": [[]], "hints": {}}']
)
def test_a_damaged_progress_is_recomputed_and_kept(damaged, folder):
    file = folder.path / "progress.json"
    file.write_text(damaged)
    with pytest.raises(ValueError, match=r"progress\.json is damaged"):
        folder.progress()
    folder.file(SOFTMAX).write_text(SOFTMAX.solution)
    asked = []
    kept = folder.repair(lambda exercise: not asked.append(exercise.name))
    assert asked == ["softmax"]  # the others are stubs
    assert folder.progress().passed == ("softmax",)
    assert kept.read_text() == damaged
    assert json.loads(file.read_text())["hints"] == {}
