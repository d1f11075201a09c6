"""`headway learn`: the course, and the exercises that it grades."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from headway.cli.parameters import Switch, check_port
from headway.extras import require

if TYPE_CHECKING:
    from headway.learn.exercise import Exercise
    from headway.learn.folder import Folder


def learn(
    *,
    list_: Annotated[Switch, Parameter(name="--list")] = False,
    grade: Path | None = None,
    chapter: str | None = None,
    check: str | None = None,
    hint: str | None = None,
    solution: str | None = None,
    progress: Switch = False,
    reset: str | None = None,
    html: Path | None = None,
    as_json: Annotated[Switch, Parameter(name="--json")] = False,
    folder: Path | None = None,
    port: int = 8430,
    open: bool = True,
) -> None:
    """Learn attention by building it: a guide, and exercises whose mistakes are named.

    Without an option: create a folder with one file per exercise, open the guide in the browser,
    and grade each file when you save it, until Ctrl-C. The exit status of --grade and --check is 1
    for a wrong answer.

    Parameters
    ----------
    list_
        List the exercises.
    grade
        Grade this file, which contains an answer to the exercise of --chapter.
    chapter
        Name or number of the exercise for --grade.
    check
        Grade the file of this exercise (name or number) in the folder.
    hint
        Print the next hint for this exercise. There are three, from a nudge to almost the answer.
    solution
        Print a solution of this exercise.
    progress
        Print which exercises are passed.
    reset
        Write the stub of this exercise again. Your file is renamed, not deleted.
    html
        Write the guide to this file, which needs neither a server nor a network.
    as_json
        Print JSON, with --list and --grade.
    folder
        Folder of your files; by default `learn`, or the current folder if your files are in it.
    port
        Port of the server; the next free one if it is in use.
    open
        Whether to open the browser.
    """
    given = {
        "--list": list_,
        "--grade": grade,
        "--check": check,
        "--hint": hint,
        "--solution": solution,
        "--progress": progress,
        "--reset": reset,
        "--html": html,
    }
    commands = [name for name, value in given.items() if value not in (None, False)]
    if len(commands) > 1:
        raise ValueError(f"one command per call (got {' and '.join(commands)})")
    if (grade is None) != (chapter is None):
        raise ValueError("--grade FILE and --chapter NAME must be given together")
    if as_json and not (list_ or grade):
        raise ValueError("--json needs --list or --grade")
    check_port(port)

    from headway.learn.exercise import find  # late: `headway --help` is fast
    from headway.learn.folder import Folder, default_folder

    console, files = Console(highlight=False), Folder(folder or default_folder())
    if html is not None:
        _write(html)
    elif grade is not None and chapter is not None:
        _grade(grade, find(chapter), console, as_json)
    elif list_ or progress:
        _list(files, console, progress, as_json)
    elif solution is not None:
        print(find(solution).solution, end="")
    elif hint is not None:
        _hint(files, find(hint), console)
    elif reset is not None:
        _reset(files, find(reset), console)
    elif check is not None:
        _check(files, find(check), console)
    else:
        _start(files, console, port, open)


def _write(html: Path) -> None:
    from headway import cache
    from headway.learn import page

    text = page.file()
    with cache.atomic(html) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{html}: {len(text) / 1e6:,.1f} MB")


def _grade(file: Path, exercise: Exercise, console: Console, as_json: bool) -> None:
    from headway.learn import grading, terminal

    result = grading.grade(file, exercise)
    if as_json:
        print(json.dumps(result.as_json(), indent=2))
    else:
        console.print(terminal.grade(exercise, file, result, console.width))
    if not result.passed:
        sys.exit(1)


def _list(files: Folder, console: Console, with_summary: bool, as_json: bool) -> None:
    from headway.learn import terminal, watch

    if with_summary:
        files.require()
    progress = watch.opened(files, console)
    listed = watch.summaries(files, progress)
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    console.print(terminal.table(listed, progress))
    if with_summary:
        console.print("", terminal.passed(files, progress))


def _hint(files: Folder, exercise: Exercise, console: Console) -> None:
    from rich.markdown import Markdown

    from headway.learn import watch

    files.require()
    watch.opened(files, console)
    number, total = files.next_hint(exercise), len(exercise.hints)
    left = f"{total - number} left"
    if number == total:
        left = f"the last one; then: headway learn --solution {exercise.number}"
    console.print(f"[bold]Hint {number} of {total} for {exercise}[/] [dim]({left})[/]")
    console.print(Markdown(exercise.hints[number - 1]))


def _reset(files: Folder, exercise: Exercise, console: Console) -> None:
    from headway.learn import watch
    from headway.learn.exercise import exercises

    files.require()
    before = watch.opened(files, console)
    kept = files.reset(exercise)
    text = f"{files.file(exercise)} is the stub again"
    if kept is not None:
        text += f"; your file is now {kept}"
    if exercise.name in before.passed:
        text += f"; {exercise} is no longer passed"
    if exercise.name in before.hints:
        text += "; its hints start again with the first"
    after = files.progress()
    for other in exercises().values():
        if after.state(other) == "locked" and before.state(other) != "locked":
            text += f"; {other} is locked until you pass {exercise} again"
    console.print(text, markup=False)


def _check(files: Folder, exercise: Exercise, console: Console) -> None:
    from headway.learn.watch import Session

    files.require()
    if not Session(files, console).check(exercise).passed:
        sys.exit(1)


def _start(files: Folder, console: Console, port: int, show: bool) -> None:
    from headway import cache
    from headway.learn import grading

    created = files.create()
    with cache.locked(files.path):  # two sessions would grade each file twice
        if created:
            console.print(f"{files.path}: {len(created)} new files, one per exercise", markup=False)
        grading.warm_up()
        _watch(files, console, port, show)


def _watch(files: Folder, console: Console, port: int, show: bool) -> None:
    from headway.learn.watch import Session

    session, stop = Session(files, console), threading.Event()
    try:
        require("explore", "the guide")
    except ValueError as error:
        console.print(f"{error}; the exercises work without it (stop with Ctrl-C)", markup=False)
        with suppress(KeyboardInterrupt):
            session.run(stop)
        return
    from headway.learn.server import serve

    thread = threading.Thread(target=session.run, args=[stop], daemon=True)
    try:
        serve(session.state, port=port, show=show, starting=thread.start)
    finally:
        stop.set()
        if thread.is_alive():
            thread.join(2)  # longer only if PyTorch is still imported for the first grade
