"""Grade the exercises of a folder at each save."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
        self._stop = Event()

    def run(self, stop: Event) -> None:
        """Grade the current exercise, and then every file that is saved, until `stop` is set."""
        self._stop = stop
        with suppress(grading.Cancelled):  # it was set during a grade
            self._run()

    def _run(self) -> None:
        saves, exists = saved(self._folder, self._stop), True
        self._begin()
        for files in saves:
            existed, exists = exists, self._folder.path.is_dir()
            if exists and existed:
                for exercise in files:
                    self._grade(exercise)
            elif exists:
                self._say(f"the folder {self._folder.path} is back", "yellow")
                self._begin()
            else:
                advice = "put it back, or start `headway learn` again to begin anew"
                self._say(f"the folder {self._folder.path} was deleted; {advice}", "yellow")

    def state(self) -> dict[str, Any]:
        """Return the state of all exercises, for the page."""
        try:
            progress = self._folder.progress()
        except ValueError:  # repaired at the next save
            progress = Progress()
        grades = {name: grade.as_json() for name, grade in self._grades.copy().items()}
        every = summaries(self._folder, progress)
        listed = [
            {**summary, "right": exercise.right, "grade": grades.get(exercise.name)}
            for summary, exercise in zip(every, exercises().values(), strict=True)
        ]
        return {"exercises": listed, "current": progress.current.name if progress.current else None}

    def check(self, exercise: Exercise, is_cancelled: Callable[[], bool] = lambda: False) -> Grade:
        """Grade an exercise, print the grade and record it if it is passed."""
        file = self._folder.file(exercise)
        self._console.print(terminal.heading(exercise, file))
        grade = grading.grade(file, exercise, is_cancelled=is_cancelled)
        self._grades[exercise.name] = grade
        if grade.passed:
            self._folder.mark_passed(exercise)
        self._console.print(terminal.grade(exercise, file, grade, self._console.width))
        if grade.passed:
            self._console.print(terminal.passed(self._folder, self._progress()))
        return grade

    def _begin(self) -> None:
        current = self._progress().current
        if current is None:
            self._console.print(terminal.finished())
        elif self._folder.is_started(current):
            self._grade(current)
        else:
            self._console.print(terminal.next_step(current, self._folder.file(current)))

    def _grade(self, exercise: Exercise) -> None:
        try:
            self._grade_open(exercise)
        except grading.Cancelled:
            if self._stop.is_set():
                raise
            self._say("the file changed, so this grade was stopped", "dim")
        except Exception as error:  # of Headway or the system: the session continues
            self._say(f"not graded: {error!r}", "red")

    def _grade_open(self, exercise: Exercise) -> None:
        """Grade an exercise unless it is locked, and those that it unlocks."""
        progress = self._progress()
        if progress.state(exercise) == "locked":
            if self._folder.is_started(exercise):
                assert progress.current is not None
                self._console.print(terminal.locked(exercise, progress.current))
            return
        file = self._folder.file(exercise)
        stamp = _stamp(file)
        self.check(exercise, lambda: self._stop.is_set() or _stamp(file) != stamp)
        following = self._progress().current
        if following not in (None, progress.current) and self._folder.is_started(following):
            self._grade(following)

    def _say(self, text: str, style: str) -> None:
        self._console.print(text, style=style, markup=False)

    def _progress(self) -> Progress:
        return opened(self._folder, self._console, self._stop.is_set)


def opened(
    folder: Folder, console: Console, is_cancelled: Callable[[], bool] = lambda: False
) -> Progress:
    """Return the progress; if its file is damaged, grade all answers again."""
    try:
        return folder.progress()
    except ValueError as error:
        console.print(f"{error}; grading your files again", style="yellow", markup=False)

        def passed(exercise: Exercise) -> bool:
            file = folder.file(exercise)
            return grading.grade(file, exercise, is_cancelled=is_cancelled).passed

        kept = folder.repair(passed)
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


def saved(folder: Folder, stop: Event) -> Iterator[list[Exercise]]:
    """Return the exercises whose files are saved or disappear from now on, until `stop` is set."""
    return _changes(folder, _stamps(folder), stop)


def _changes(folder: Folder, seen: dict[str, Stamp], stop: Event) -> Iterator[list[Exercise]]:
    while not stop.wait(INTERVAL):
        stamps = _stamps(folder)
        if stamps != seen:
            time.sleep(SETTLED)
        if stamps == seen or stamps != _stamps(folder):
            continue
        changed = [exercises()[name] for name, stamp in stamps.items() if stamp != seen[name]]
        seen = stamps
        yield changed


def _stamps(folder: Folder) -> dict[str, Stamp]:
    return {name: _stamp(folder.file(exercise)) for name, exercise in exercises().items()}


def _stamp(file: Path) -> Stamp:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
