"""The learner's folder: one file per exercise, and the progress. Files are never overwritten."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal

from headway import cache
from headway.learn.exercise import Exercise, exercises

State = Literal["locked", "open", "passed"]


@dataclass(frozen=True)
class Progress:
    """passed: the names of exercises. hints: how many hints were given, by name."""

    passed: tuple[str, ...] = ()
    hints: dict[str, int] = field(default_factory=dict)

    def state(self, exercise: Exercise) -> State:
        """Passing an exercise unlocks the next one."""
        if exercise.name in self.passed:
            return "passed"
        names = [*exercises()]
        before = names[: names.index(exercise.name)]
        return "open" if not before or before[-1] in self.passed else "locked"

    @property
    def current(self) -> Exercise | None:
        """The first exercise that is not passed; None if all are."""
        return next((e for e in exercises().values() if e.name not in self.passed), None)


class Folder:
    """A folder with the files of the exercises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = path / "progress.json"

    def create(self) -> list[Path]:
        """Create the folder and the files that are missing. Returns the new files."""
        self._check()
        self.path.mkdir(parents=True, exist_ok=True)
        created = []
        for exercise in exercises().values():
            file = self.file(exercise)
            if not file.is_symlink() and not file.exists():
                _write_new(file, stub(exercise))
                created.append(file)
        return created

    def require(self) -> None:
        """Raise ValueError if there is no such folder."""
        self._check()
        if not self.path.is_dir():
            raise ValueError(
                f"folder {str(self.path)!r} not found; run `headway learn` here first, or give "
                "--folder"
            )

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; give another --folder")

    def file(self, exercise: Exercise) -> Path:
        """Return the learner's file of an exercise."""
        return self.path / exercise.file

    def is_started(self, exercise: Exercise) -> bool:
        """Whether the file exists and is no longer the stub."""
        try:
            return self.file(exercise).read_bytes() != stub(exercise).encode()
        except OSError:
            return False

    def progress(self) -> Progress:
        """Read the progress. Raises ValueError if its file is damaged."""
        try:
            given = json.loads(self._record.read_text(encoding="utf-8"))
            passed, hints = given["passed"], given["hints"]
            if not all(isinstance(name, str) for name in [*passed, *hints]):
                raise TypeError
            return Progress(tuple(passed), {name: int(number) for name, number in hints.items()})
        except FileNotFoundError:
            return Progress()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{self._record} is damaged") from None

    def repair(self, passes: Callable[[Exercise], bool]) -> Path:
        """Replace a damaged file of the progress: grade all answers again.

        Returns where the damaged file was moved.
        """
        kept = _moved(self._record)
        started = filter(self.is_started, exercises().values())
        self._save(Progress(tuple(e.name for e in started if passes(e))))
        return kept

    def mark_passed(self, exercise: Exercise) -> None:
        """Record that an exercise is passed."""
        progress = self.progress()
        if exercise.name not in progress.passed:
            self._save(replace(progress, passed=(*progress.passed, exercise.name)))

    def next_hint(self, exercise: Exercise) -> int:
        """Return the number of the next hint, from 1; after the last one the last one again."""
        progress = self.progress()
        number = min(progress.hints.get(exercise.name, 0) + 1, len(exercise.hints))
        self._save(replace(progress, hints={**progress.hints, exercise.name: number}))
        return number

    def reset(self, exercise: Exercise) -> Path | None:
        """Write the stub again and forget the progress in this exercise.

        Returns the new name of the learner's file; None if there is none.
        """
        file = self.file(exercise)
        kept = _moved(file) if self.is_started(exercise) else None
        if not file.exists():
            _write_new(file, stub(exercise))
        progress = self.progress()
        hints = {name: number for name, number in progress.hints.items() if name != exercise.name}
        passed = tuple(name for name in progress.passed if name != exercise.name)
        self._save(Progress(passed, hints))
        return kept

    def _save(self, progress: Progress) -> None:
        with cache.atomic(self._record) as temporary:
            temporary.write_text(json.dumps(asdict(progress), indent=2) + "\n", encoding="utf-8")


def default_folder() -> Path:
    """Return `learn`, or the current folder if there is no `learn` and the files are here."""
    path, here = Path("learn"), Path()
    if not path.exists() and all((here / e.file).exists() for e in exercises().values()):
        return here
    return path


def stub(exercise: Exercise) -> str:
    """Return the file that the learner starts from: the task as a comment, and the stub."""
    lines = [f"Exercise {exercise.number}: {exercise.title}", ""]
    for paragraph in exercise.task.split("\n\n"):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), 96, break_on_hyphens=False), ""]
    lines.append(f"A hint: headway learn --hint {exercise.number}")
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + f"\n{exercise.stub}"


def _write_new(file: Path, text: str) -> None:
    with file.open("x", encoding="utf-8", newline="\n") as new:  # fails if it exists
        new.write(text)


def _moved(file: Path) -> Path:
    """Rename a file to the first free name for a backup, and return it."""
    names = (file.with_name(f"{file.stem}.backup-{n}{file.suffix}") for n in count(1))
    kept = next(name for name in names if not name.exists())
    return file.rename(kept)
