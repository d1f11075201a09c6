"""Grade the exercises of a folder at each save."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console

from headway.learn import grading, terminal
from headway.learn.exercise import Exercise, exercises
from headway.learn.folder import Folder, Progress
from headway.learn.grades import Grade

INTERVAL = 0.2  # seconds between two looks at the files
SETTLED = 0.1  # seconds without a change: the file is written

Stamp = tuple[int, int, int] | None  # None: there is no file


class Session:
    """One run of `headway learn`: it grades, prints, and tells the page about it."""

    def __init__(self, folder: Folder, console: Console) -> None:
        self._folder, self._console = folder, console
        self._grades: dict[str, Grade] = {}

    def run(self, stop: Event) -> None:
        """Grade the current exercise, and then every file that is saved, until `stop` is set."""
        saves = saved(self._folder, stop)
        current = self._progress().current
        if current is None:
            self._console.print(terminal.finished())
        elif self._folder.is_started(current):
            self._graded(current)
        else:
            self._console.print(terminal.next_step(current, self._folder.file(current)))
        for exercise in saves:
            try:
                self._graded(exercise)
            except Exception as error:  # of Headway or the system: the session continues
                self._console.print(f"not graded: {error!r}", style="red", markup=False)

    def state(self) -> dict[str, Any]:
        """Return the state of all exercises, for the page."""
        try:
            progress = self._folder.progress()
        except ValueError:  # repaired at the next save
            progress = Progress()
        grades = {name: grade.as_json() for name, grade in self._grades.copy().items()}
        listed = [
            {**summary, "grade": grades.get(summary["name"])}
            for summary in summaries(self._folder, progress)
        ]
        return {"exercises": listed, "current": progress.current.name if progress.current else None}

    def check(self, exercise: Exercise) -> Grade:
        """Grade an exercise, print the grade and record it if it is passed."""
        file = self._folder.file(exercise)
        self._console.print(terminal.heading(exercise, file))
        grade = self._grades[exercise.name] = grading.grade(file, exercise)
        is_new = exercise.name not in self._progress().passed
        if grade.passed:
            self._folder.mark_passed(exercise)
        self._console.print(terminal.grade(exercise, file, grade, self._console.width))
        if grade.passed:
            progress = self._progress()
            self._console.print(terminal.passed(self._folder, progress))
            following = progress.current
            if is_new and following is not None and self._folder.is_started(following):
                self.check(following)
        return grade

    def _graded(self, exercise: Exercise) -> None:
        progress = self._progress()
        if progress.state(exercise) == "locked":
            assert progress.current is not None
            self._console.print(terminal.locked(exercise, progress.current))
        else:
            self.check(exercise)

    def _progress(self) -> Progress:
        return opened(self._folder, self._console)


def opened(folder: Folder, console: Console) -> Progress:
    """Return the progress; if its file is damaged, grade all answers again."""
    try:
        return folder.progress()
    except ValueError as error:
        console.print(f"{error}; grading your files again", style="yellow", markup=False)
        kept = folder.repair(lambda exercise: grading.grade(folder.file(exercise), exercise).passed)
        console.print(f"the damaged file is now {kept}", style="yellow", markup=False)
        return folder.progress()


def summaries(folder: Folder, progress: Progress) -> list[dict[str, Any]]:
    """Return number, name, title, state and file of each exercise."""
    return [
        {
            "number": exercise.number,
            "name": exercise.name,
            "title": exercise.title,
            "state": progress.state(exercise),
            "file": str(folder.file(exercise)),
        }
        for exercise in exercises().values()
    ]


def saved(folder: Folder, stop: Event) -> Iterator[Exercise]:
    """Return the exercises whose files are saved or disappear from now on, until `stop` is set."""
    files = {exercise.name: folder.file(exercise) for exercise in exercises().values()}
    return _changed(files, {name: _stamp(file) for name, file in files.items()}, stop)


def _changed(files: dict[str, Path], seen: dict[str, Stamp], stop: Event) -> Iterator[Exercise]:
    while not stop.wait(INTERVAL):
        for name, file in files.items():
            stamp = _stamp(file)
            if stamp == seen[name]:
                continue
            time.sleep(SETTLED)
            if stamp == _stamp(file):
                seen[name] = stamp
                yield exercises()[name]


def _stamp(file: Path) -> Stamp:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
