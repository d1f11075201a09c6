"""The graders name the faults of wrong answers, and pass correct ones."""

from collections import Counter

import numpy as np
import pytest

from answer_trial import PAGE, Case, cases, said
from grade_sample import PAGE as DOCS
from grade_sample import SAMPLE, sample
from headway.learn.exercise import exercises, find
from headway.learn.folder import stub
from headway.learn.guide import CHAPTERS

CASES = cases()
NO_CODE = ("#", '"', "'", "import ", "from ")  # how comments, docstrings and imports begin


def fast(exercise):
    """Three wrong answers and a correct one, without those that compile or train for long."""
    cases = [case for case in CASES if case.exercise == exercise and "jax" not in case.code]
    wrong = [case for case in cases if case.fault]
    correct = [case for case in cases if not case.fault and exercise != "gpt"]
    return wrong[:: -(-len(wrong) // 3)] + correct[len(correct) // 2 :][:1]


FAST = [case for exercise in exercises() for case in fast(exercise)]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=f"{case.exercise}: {case.title}",
            marks=[] if case in FAST else [pytest.mark.slow],
        )
        for case in CASES
    ],
)
def test_the_grader_names_the_fault_or_passes_the_answer(case):
    grade = said(case)
    assert grade.fault == case.fault, grade.message
    assert not grade.code.startswith(NO_CODE), grade.code


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{case.exercise}: {case.title}") for case in FAST if case.fault]
)
def test_the_line_shown_is_code_also_under_the_task_and_the_docstring_of_the_stub(case):
    start = stub(find(case.exercise)).rpartition('"""')[0] + '"""\n'
    grade = said(case._replace(code=start + case.code))
    assert grade.fault == case.fault, grade.message
    assert not grade.code.startswith(NO_CODE), grade.code
    assert grade.line is None or grade.line > start.count("\n")


SOFTMAX = find("softmax").solution
SCALES = {"": None, "/ keys.shape[-1] ** 0.5": None, "/ 7": "scale-constant"}
SCALES |= {"* 3": "scale-constant", "/ keys.shape[-1]": "scale-without-root"}
SCALES |= {"* keys.shape[-1] ** 0.5": "scale-multiplied"}
PROJECTED = f"""{SOFTMAX}

def attention(x, W_query, W_key, W_value):
    queries, keys, values = x @ W_query, x @ W_key, x @ W_value
    scores = queries @ keys.T
    return softmax(scores) @ values
"""


@pytest.mark.parametrize("scale", SCALES)
def test_exercise_4_accepts_the_scales_that_its_chapter_names(scale):
    code = PROJECTED.replace("keys.T", f"keys.T {scale}")
    assert said(Case("projections", "", None, "", code)).fault == SCALES[scale]
    text = (CHAPTERS / "04_projections.md").read_text()
    assert "accepts scores that are divided by sqrt(d_k) or not divided," in text


def test_a_softmax_that_is_never_called_is_not_shown():
    code = PROJECTED.replace("softmax(scores) @", "scores @")
    grade = said(Case("projections", "", None, "", code))
    assert (grade.fault, grade.code) == ("no-softmax", "scores = queries @ keys.T")


def test_the_examples_of_dropout_show_one_rate_and_a_right_result_with_zeros():
    for case in CASES:
        if case.exercise == "dropout" and (example := said(case).example):
            right = example.right
            dropped = {0.2: 2, 0.7: 6}[float(example.inputs["rate"])]  # of 9 weights
            assert not example.inputs["training"] or (right == 0).sum() == dropped, case.title
            assert not np.allclose(example.yours, right), case.title


def test_each_exercise_has_many_wrong_answers_and_some_correct_ones():
    wrong = Counter(case.exercise for case in CASES if case.fault)
    correct = Counter(case.exercise for case in CASES if not case.fault)
    for exercise in exercises():
        is_bug = exercise.startswith("bug")
        assert wrong[exercise] >= (1 if is_bug else 10), exercise
        assert correct[exercise] >= (1 if is_bug else 5), exercise
    assert sum(case.source.startswith("[") for case in CASES) >= 60


def test_the_page_is_up_to_date():
    text = PAGE.read_text()
    for case in CASES:
        title = case.title.replace("|", "\\|")
        assert f"\n| {title} | {case.fault or ''} |" in text, "run `make docs`"


def test_the_sample_of_a_grade_is_real():
    assert SAMPLE.findall(DOCS.read_text()) == [sample()], "run `make docs`"
