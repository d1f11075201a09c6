"""What the page shows of a grade."""

import json

import numpy as np
import pytest

from figures import ADDRESS, called, drawn, matrix

pytestmark = pytest.mark.xdist_group("browser")
BOX = '<div data-exercise="heads"><div class="state"></div></div>'


def test_the_matrix_with_the_first_wrong_cell_is_shown(page):
    """Of results with more than two axes; before it may be matrices that are right."""
    right = np.arange(2 * 2 * 3 * 3).reshape(2, 2, 3, 3) / 4
    yours = right.copy()
    yours[1, 0, 1, 2] += 1
    example = {"what": "weights", "inputs": {}, "wrong": [1, 0, 1, 2]}
    example |= {"yours": yours.tolist(), "right": right.tolist()}
    grade = {"passed": False, "fault": "x", "message": "Wrong.", "line": None, "printed": ""}
    exercise = {"number": 8, "name": "heads", "title": "", "state": "open"}
    exercise |= {"file": "a.py", "right": "the right"}
    exercise["grade"] = {**grade, "example": example}
    progress = json.dumps({"exercises": [exercise], "current": "heads"})
    drawn(page, "gpt")  # any figure: it opens the page
    page.route(f"{ADDRESS}progress", lambda route: route.fulfill(body=progress))
    page.evaluate("html => { document.querySelector('main').innerHTML = html }", BOX)
    called(page, "progress", "follow")
    page.get_by_text("Your weights at [1, 0]").wait_for()
    for place, numbers in enumerate((yours, right)):
        shown = matrix(page, f".compared figure:nth-child({place + 1}) .matrix")
        np.testing.assert_allclose(shown, numbers[1, 0])
