"""The graders name the faults of wrong answers, and pass correct ones."""

import pytest

from answer_trial import cases, said

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.exercise}: {case.title}")
def test_the_grader_names_the_fault_or_passes_the_answer(case):
    assert said(case).fault == case.fault, said(case).message
