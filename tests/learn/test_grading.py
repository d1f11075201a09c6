"""A grade of any file is one helpful line, whatever its code does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from select import select

import numpy as np
import pytest

from headway.learn import grading
from headway.learn.exercise import exercises, find
from headway.learn.grades import Example, Grade
from headway.learn.worker import _matching, grade_here

# On one worker, because starting the process that imports PyTorch takes seconds.
pytestmark = pytest.mark.xdist_group("grading")

SOFTMAX = find("softmax")
RIGHT = """\
import numpy as np


def softmax(scores):
    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)
"""
STUB_LINE = SOFTMAX.stub.splitlines().index("    raise NotImplementedError") + 1


def graded(tmp_path, code, seconds=None, name="03_softmax.py"):
    file = tmp_path / name
    file.write_bytes(code if isinstance(code, bytes) else code.encode())
    return grading.grade(file, SOFTMAX, seconds)


def in_softmax(body):
    return f"import numpy as np\n\n\ndef softmax(scores):\n    {body}\n"


# What the answer does: the fault, a part of the message, and the line of the code.
HOSTILE = {
    "syntax error": ("def softmax(scores:\n    return 1\n", "syntax", "'(' was never closed", 1),
    "tabs and spaces": ("def f(x):\n\tif x:\n        return 1\n", "syntax", "inconsistent", 3),
    "null byte": ("def f(x):\n    return '\0'\n", "syntax", "null bytes", None),
    "exception": (in_softmax("return scores / undefined"), "error", "NameError: name 'und", 5),
    "exception while importing": ("1 / 0\n", "error", "ZeroDivisionError", 1),
    "exception in a helper": (
        "def helper(x):\n    raise KeyError('a')\n\n\ndef softmax(x):\n    return helper(x)\n",
        *("error", "KeyError", 2),
    ),
    "assert": (in_softmax("assert scores is None"), "error", "It raised AssertionError.", 5),
    "exit": (in_softmax("exit()"), "exit", "calls exit()", 5),
    "exit while importing": ("import sys\nsys.exit(0)\n", "exit", "calls exit()", 2),
    "exit of the process": (in_softmax("import os; os._exit(0)"), "crash", "exit status 0", None),
    "segmentation fault": (
        in_softmax("import ctypes; ctypes.string_at(0)"),
        *("crash", "Python crashed: Segmentation fault (signal 11).", 5),
    ),
    "recursion": (in_softmax("return softmax(scores)"), "recursion", "calls itself", 5),
    "array larger than memory": (
        in_softmax("return np.zeros(3 * 10**9, np.uint8)"),
        *("memory", "2 GB", 5),
    ),
    "list larger than memory": (in_softmax("return [0] * (3 * 10**9 // 8)"), "memory", "2 GB", 5),
    "tensor larger than memory": (
        "import torch\n\n\ndef softmax(x):\n    return torch.empty(3 * 10**9, dtype=torch.uint8)\n",
        *("memory", "2 GB", 5),
    ),
    "NaN": (in_softmax("return scores * np.nan"), "nan", "NaN", None),
    "wrong shape": (in_softmax("return np.concatenate([scores] * 3)"), "shape", "shape", None),
    "list": (in_softmax("return [scores, 1]"), "not-an-array", "returned a list", None),
    "text": (in_softmax("return 'scores'"), "not-an-array", "returned a str", None),
    "array of text": (
        in_softmax("return np.array([['a', 'b']])"),
        *("not-numbers", "returned an array of text; return real numbers.", None),
    ),
    "instance": (
        "class A: pass\n\n\ndef softmax(scores):\n    return A()\n",
        *("not-an-array", "returned an instance of the class A; return an array.", None),
    ),
    "None": (in_softmax("pass"), "no-result", "return statement", None),
    "no arguments": ("def softmax():\n    return 1\n", "arguments", "0 positional", None),
    "reads the keyboard": (in_softmax("return input('scores? ')"), "input", "waits for input", 5),
    "unknown module": ("import tensorlow\n", "import", "No module named 'tensorlow'", 1),
    "two functions": (
        "def a(x):\n    return x\n\n\ndef b(x):\n    return x\n",
        *("no-answer", "defines a, b, but not softmax", None),
    ),
    "no function": ("x = 1\n", "no-answer", "defines no function, but not softmax", None),
    "empty": ("\n\n", "empty", "headway learn --reset 3", None),
    "not UTF-8": (b"x = 1\ny = '\xff'\n", "not-utf-8", "Line 2", None),
    "stub": (SOFTMAX.stub, "not-started", "replace `raise NotImplementedError`", STUB_LINE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_each_fault_is_one_helpful_line(name, tmp_path):
    code, fault, message, line = HOSTILE[name]
    grade = graded(tmp_path, code)
    assert (grade.passed, grade.fault, grade.line) == (False, fault, line), grade
    assert message in grade.message
    assert "\n" not in grade.message
    if line is not None:
        assert grade.code == code.splitlines()[line - 1].strip()


LOOPS = {
    "loop": ("while True: pass", 5),
    "loop that catches everything": (
        "while True:\n        try:\n            pass\n        except BaseException:\n"
        "            pass",
        None,
    ),
    "loop in C": ("return sum(iter(int, 1))", 5),
    "sleep": ("import time; time.sleep(1000)", 5),
    "other process": ("import subprocess; subprocess.run(['sleep', '1000'])", 5),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_without_end_is_stopped(name, tmp_path):
    body, line = LOOPS[name]
    begun = time.monotonic()
    grade = graded(tmp_path, in_softmax(f"print('begun')\n    {body}"), 0.4)
    assert time.monotonic() - begun < 30  # also the imports
    assert grade.fault == "time"
    if name in ("sleep", "other process"):
        assert "1.2 seconds. Does it wait" in grade.message
    assert grade.printed == "begun"
    if line is not None:
        assert grade.line == line + 1


def test_many_lines_are_named_as_a_reason(tmp_path):
    grade = graded(tmp_path, in_softmax("while True: print(scores)"), 0.4)
    assert re.search(r"It printed [\d,]{5,} lines, .*: print less", grade.message)
    assert grade.line == 5


@pytest.mark.parametrize("element", ["np.zeros(100)", "str(len(x))", "len(x) / 3", "[1]"])
def test_a_growing_list_is_larger_than_memory(element, tmp_path, monkeypatch):
    """No memory is left for small objects, such as those of the message."""
    monkeypatch.setattr(grading, "MEMORY", 2 * 10**8)
    grade = graded(tmp_path, in_softmax(f"x = []\n    while True:\n        x.append({element})"))
    assert grade.fault == "memory"
    assert grade.line in (6, 7)  # the loop
    assert "does a list grow without end?" in grade.message


def test_the_line_is_that_of_the_text_that_was_graded(tmp_path, monkeypatch):
    """Also if the file is saved while it is graded."""
    newer = "open(__file__, 'w').write('newer\\n' * 9)\n"
    grade = graded(tmp_path, newer + in_softmax("while True: pass"), 0.4)
    assert (grade.line, grade.code) == (6, "while True: pass")
    code = newer + in_softmax("return scores @ scores[:1]")
    assert "scores has the shape" in graded(tmp_path, code).message

    def saved():  # before the process reads anything
        warm_up()
        (tmp_path / "03_softmax.py").write_text("newer")

    warm_up = grading.warm_up
    monkeypatch.setattr(grading, "warm_up", saved)
    assert graded(tmp_path, RIGHT.replace("-1", "0")).code in RIGHT.replace("-1", "0")
    assert graded(tmp_path, RIGHT).passed


@pytest.mark.parametrize(
    ("largest", "exps", "total", "message", "line"),
    [
        ("0", "np.exp(scores)", "exps.sum(axis=0)", "over each column", 7),
        ("scores.max(axis=-1, keepdims=True)", None, "exps.sum(axis=0)", "sum over each column", 7),
        ("scores.max(axis=-1, keepdims=True)", None, "np.sum(exps, 0)", "sum over each column", 7),
        ("scores.max(axis=-1, keepdims=True)", None, "exps.sum()", "sum over the whole matrix", 7),
        ("scores.max(axis=-1, keepdims=True)", None, "exps.sum(axis=-1)", "Write keepdims", 7),
        ("scores.max(axis=0)", None, "exps.sum(axis=-1, keepdims=True)", "of each column", 5),
        ("scores.max(axis=0)", None, "exps.sum()", "of each column", 5),
    ],
)
def test_the_line_of_a_wrong_axis_has_the_axis(largest, exps, total, message, line, tmp_path):
    body = f"largest = {largest}\n    exps = {exps or 'np.exp(scores - largest)'}\n"
    grade = graded(tmp_path, in_softmax(f"{body}    return exps / {total}"))
    assert message in grade.message
    assert grade.line == line


def test_only_the_time_of_the_processor_counts(tmp_path):
    """Waiting is free, up to three times the limit. This test needs no idle machine."""
    waits = "import time\ntime.sleep(0.5)\n"
    assert graded(tmp_path, waits + RIGHT, 0.4).passed
    # The loop switches the other limit off.
    loops = "import faulthandler\nfaulthandler.cancel_dump_traceback_later()\nwhile True: pass\n"
    grade = graded(tmp_path, loops, 0.4)
    assert (grade.fault, grade.line) == ("time", 3)
    assert "0.4 seconds of the processor" in grade.message


def test_a_file_that_disappeared(tmp_path):
    grade = grading.grade(tmp_path / "a.py", SOFTMAX)
    assert (grade.fault, grade.message) == ("no-file", "The file does not exist.")
    grade = grading.grade(tmp_path / SOFTMAX.file, SOFTMAX)
    assert "headway learn --reset 3" in grade.message
    assert grading.grade(tmp_path, SOFTMAX).fault == "no-file"


def test_a_thread_that_hangs_does_not_delay_the_grade(tmp_path):
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=[1000]).start()\n"
    assert graded(tmp_path, thread + RIGHT).passed


def test_a_path_with_the_word_timeout_is_no_timeout():
    said = 'started\nFatal Python error\n  File "/Timeout/a.py", line 1 in softmax'
    file, printed = Path("/Timeout/a.py"), grading.Printed()
    assert grading._stopped(said, file, b"1 / 0", 1, -11, printed).fault == "crash"


# It starts two programs, and all three keep a pipe open as long as they run.
LEAVES = """\
import subprocess
pipe = open({pipe!r}, "w")
subprocess.Popen(["sleep", "1000"], stdout=pipe)
subprocess.Popen(["sleep", "1000"], stdout=pipe, start_new_session=True)
"""


@pytest.mark.parametrize("code", [RIGHT, "while True: pass\n"], ids=["right", "loop"])
def test_programs_that_an_answer_has_started_are_ended(code, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as pipe:
        grade = graded(tmp_path, LEAVES.format(pipe=str(tmp_path / "pipe")) + code, 0.4)
        assert grade.passed == (code == RIGHT)
        assert_ends(pipe)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_after_the_end_of_the_terminal(name, tmp_path):
    """The answer holds Python's lock, so that no thread of it could end the process."""
    os.mkfifo(tmp_path / "pipe")
    loop = "print('begun', file=pipe, flush=True)\nsum(iter(int, 1))\n"
    (tmp_path / "a.py").write_text(LEAVES.format(pipe=str(tmp_path / "pipe")) + loop)
    command = [Path(sys.executable).parent / "headway", "learn", "--grade", "a.py"]
    process = subprocess.Popen([*command, "--chapter", "14"], cwd=tmp_path)
    with open(tmp_path / "pipe") as pipe:
        assert pipe.readline() == "begun\n"
        process.send_signal(getattr(signal, name))
        assert_ends(pipe)
    process.wait(timeout=20)
    assert process.returncode == -getattr(signal, name)


def assert_ends(pipe):
    """All programs that could write to a pipe have ended."""
    assert select([pipe], [], [], 20)[0]
    assert not pipe.read()


def test_the_first_matching_statement_is_shown():
    """Also if it is in a loop, and a later one is not."""
    source = "def f(x):\n    for row in x:\n        row = row @ x\n    return row @ x\n"
    assert _matching("@", source, "f") == (3, "row = row @ x")


def test_only_code_that_runs_is_searched():
    used = 'def f(x):\n    """Return x @ x."""\n    # x @ x\n    return x @ x\n'
    source = f'"""x @ x"""\nimport at as mat  # @\ndef g(x):\n    return x @ mat\n{used}'
    assert _matching("@|mat", source, "f") == (8, "return x @ x")
    # The answer may have another name.
    assert _matching("@|mat", source, "softmax") == (4, "return x @ mat")


def test_many_lines_are_shortened(tmp_path):
    code = RIGHT.replace("    exps", "    [print('line', i) for i in range(20_000)]\n    exps", 1)
    lines = graded(tmp_path, code, seconds=60).printed.splitlines()
    assert lines[:2] == ["line 0", "line 1"]
    assert lines[grading.LINES].endswith("more lines ...")
    assert lines[-1] == "line 19999"
    assert len(lines) == 2 * grading.LINES + 1


def printed(text):
    output = grading.Printed()
    for start in range(0, len(text), 1000):
        output.add(text[start : start + 1000].encode())
    return str(output).splitlines()


def test_the_lines_left_out_are_counted():
    wide = ["x" * 300] * 15 + ["end"]  # more than BYTES
    assert printed("\n".join(wide)) == ["x" * grading.WIDTH] * 15 + ["end"]
    assert printed("x" * 9999) == ["x" * grading.WIDTH, "...", "x" * grading.WIDTH]
    for count in (20, 21, 22, 5000):
        for end in ("", "\n"):
            lines = [f"line {i}" for i in range(count)]
            shown = printed("\n".join(lines) + end)
            if count > 20:
                lines[10:-10] = [f"... {count - 20:,} more lines ..."]
            assert shown == lines


def test_the_output_of_one_call_is_shown(tmp_path):
    code = "print('imported')\n" + RIGHT.replace("    exps", "    print(scores.shape)\n    exps", 1)
    assert graded(tmp_path, code).printed == "imported\n(2, 2)"


def test_a_line_without_end_is_shortened(tmp_path):
    assert len(graded(tmp_path, "print('x' * 10**7)\n" + RIGHT).printed) < 1000


def test_output_of_c_and_of_errors_is_kept(tmp_path):
    code = "import os, sys\nos.write(1, b'c\\n')\nprint('e', file=sys.stderr)\n"
    assert graded(tmp_path, code + RIGHT).printed == "c\ne"


def test_streams_that_are_closed(tmp_path):
    assert graded(tmp_path, "import sys\nsys.stdout.close()\nsys.stdout = None\n" + RIGHT).passed


def test_nothing_is_left_in_the_folder_or_taken_from_it(tmp_path):
    graded(tmp_path, RIGHT)
    assert [file.name for file in tmp_path.iterdir()] == ["03_softmax.py"]
    # The same size and, in a coarse file system, the same time: no bytecode may be used.
    assert not graded(tmp_path, RIGHT.replace("axis=-1", "axis=+0")).passed


def test_a_module_in_the_same_folder_can_be_imported(tmp_path):
    (tmp_path / "helper.py").write_text(RIGHT)
    assert graded(tmp_path, "from helper import softmax\n").passed


def test_a_file_with_the_name_of_a_module_of_python_hides_nothing(tmp_path):
    (tmp_path / "sched.py").write_text("1 / 0")
    assert graded(tmp_path, "import sched\n" + RIGHT).passed


def test_what_does_not_matter(tmp_path):
    assert graded(tmp_path, b"\xef\xbb\xbf" + RIGHT.replace("\n", "\r\n").encode()).passed
    assert graded(tmp_path, RIGHT, name="my answer.py").passed
    assert graded(tmp_path, RIGHT.replace("softmax", "my_function")).passed
    helper = "def helper(x):\n    return x\n\n\n" + RIGHT.replace(
        "(scores - ", "(helper(scores) - "
    )
    assert graded(tmp_path, helper.replace("softmax", "my_function")).passed
    assert graded(tmp_path, RIGHT + "\n\nif __name__ == '__main__':\n    exit()\n").passed


def test_a_warm_grade_takes_less_than_two_seconds(tmp_path):
    """Of the processor, until the last call, so that other programs do not count."""
    graded(tmp_path, RIGHT)
    seconds = f"open({str(tmp_path / 'seconds')!r}, 'w').write(str(time.process_time()))"
    code = "import time\n" + RIGHT.replace("    exps", f"    {seconds}\n    exps", 1)
    assert graded(tmp_path, code).passed
    assert float((tmp_path / "seconds").read_text()) < 2


@pytest.mark.parametrize(
    "code",
    [
        "import torch\n\n\ndef softmax(scores):\n"
        "    weights = (scores - scores.amax(-1, keepdim=True)).exp()\n"
        "    return weights / weights.sum(-1, keepdim=True)\n",
        "import torch\n" + RIGHT,
        "import jax\n" + RIGHT,
        "import jax.numpy as np\n" + RIGHT.partition("\n")[2],
        "import torch\n" + RIGHT.replace("scores.max", "torch.from_numpy(scores).numpy().max"),
    ],
)
def test_other_libraries(code, tmp_path):
    assert graded(tmp_path, code).passed


def test_the_environment_of_the_caller_is_unchanged(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    grading.warm_up()
    assert grading.os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in grading.os.environ


def test_an_error_of_a_grader_is_no_fault_of_the_answer(tmp_path, monkeypatch):
    from headway.learn import worker

    monkeypatch.setitem(worker.GRADERS, "softmax", lambda answer: 1 / 0)
    (tmp_path / "a.py").write_text(RIGHT)
    grade = grade_here(tmp_path / "a.py", SOFTMAX)
    assert (grade.fault, grade.line) == ("grader", None)


def test_a_grade_survives_json():
    example = Example(
        {"x": np.array([[np.nan, -np.inf, 0.1]]), "lengths": np.array([2, 3]), "rate": 0.5},
        np.array([1.0, np.inf]),
        np.array([1.0, 2.0]),
        (1,),
        "weights",
    )
    grade = Grade(False, "nan", "NaN", 3, "code", example, "printed")
    text = json.dumps(grade.as_json(), allow_nan=False)
    back = Grade.from_json(json.loads(text))
    assert replace(back, example=None) == replace(grade, example=None)
    np.testing.assert_equal(back.example.inputs, example.inputs)
    np.testing.assert_equal(back.example.yours, example.yours)
    assert back.example.wrong == (1,)
    assert Grade.from_json(Grade(True, None, "Correct.").as_json()) == Grade(True, None, "Correct.")


ODD = (
    "0.5",
    "{}",
    "np.array(1.0)",
    "np.zeros(0)",
    "np.ones(3)",
    "np.ones((2, 2), bool)",
    "np.ones((2, 2), complex)",
    "np.array([['a', None]], object)",
    "np.ones((1, 2, 3, 4, 5))",
    "np.full((2, 2), np.nan)",
    "args[0]",
    "args",
    "args[0] * np.nan",
)


# Of each exercise a few; `make test-all` tries all of them.
SOME = {exercise: ODD[exercise.number % 5 :: 5] for exercise in exercises().values()}


@pytest.mark.parametrize(
    ("exercise", "results"),
    [
        *(pytest.param(exercise, some, id=f"{exercise}: some") for exercise, some in SOME.items()),
        *(pytest.param(e, ODD, id=f"{e}: all", marks=pytest.mark.slow) for e in SOME),
    ],
)
def test_odd_results_never_break_a_grader(exercise, results, tmp_path):
    for odd in results:
        code = f"import numpy as np\n\n\ndef {exercise.entry}(*args, **options):\n"
        (tmp_path / exercise.file).write_text(
            f"{code}    args += (*options.values(),)\n    return {odd}\n"
        )
        grade = grade_here(tmp_path / exercise.file, exercise)
        assert grade.fault not in ("grader", None), (odd, grade.message)
        json.dumps(grade.as_json(), allow_nan=False, default=str)


@pytest.mark.parametrize(
    "exercise",
    [
        pytest.param(exercise, id=str(exercise), marks=[pytest.mark.slow] if name == "gpt" else [])
        for name, exercise in exercises().items()
    ],
)
def test_each_exercise_is_complete(exercise, tmp_path):
    """The solution passes, the stub is not started, and there are three hints."""
    assert len(exercise.hints) == 3
    assert all([exercise.title, exercise.task, *exercise.hints])
    (tmp_path / exercise.file).write_text(exercise.solution)
    grade = grading.grade(tmp_path / exercise.file, exercise)
    assert grade.passed, grade.message
    (tmp_path / exercise.file).write_text(exercise.stub)
    assert not grading.grade(tmp_path / exercise.file, exercise).passed
