"""Tests of the texts in why.md: each step and rung has one, and its numbers are right."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headway.attention.normalizers import softmax
from headway.attention.norms import rms_norm
from headway.attention.positions import Rotary
from headway.ladder.rung import INPUTS, run_example
from headway.ladder.rungs import LADDER
from headway.ladder.trainable import BOOK
from headway.ladder.why import WHY, read
from headway.tracing import BEFORE, STEPS

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?%?(?![\w]|\.\d)")
MORE = ("x", "norm", "rotary", "heads", "stream", "next")  # steps of a model, not of the formula
X = np.array(INPUTS)
ORDER = [5, 1, 2, 3, 4, 0]  # the first and the last word exchanged


def numbers(text):
    return [number.rstrip(",") for number in NUMBER.findall(text)]


def test_every_step_and_every_rung_has_a_text():
    # The steps before QK-norm and rotation are in the texts of `norm` and `rotary`.
    assert {*WHY} == {*STEPS, *LADDER, *MORE} - {*BEFORE}
    for name, why in WHY.items():
        for sentence in (why.problem, why.without, why.measured):
            assert sentence[0].isupper(), name
            assert sentence.endswith("."), name
            assert not re.search(r"[.!?] ", sentence), f"{name}: one sentence, not {sentence!r}"
        assert numbers(why.measured), name
    headings = re.findall("^## (.*)$", (ROOT / "src/headway/ladder/why.md").read_text(), re.M)
    assert [*WHY] == ", ".join(headings).split(", ")


@pytest.mark.parametrize("name", [name for name in WHY if WHY[name].report])
def test_the_numbers_are_those_of_the_report(name):
    why = WHY[name]
    report = ROOT / why.report
    assert report.is_relative_to(ROOT / "docs")
    assert {*numbers(why.measured)} <= {*numbers(report.read_text(encoding="utf-8"))}


def projected(x):
    return [x @ BOOK[name] for name in ("W_query", "W_key", "W_value")]


def rotated(x):
    queries, keys, values = projected(x)
    queries, keys = (Rotary().rotate(part, np.arange(len(x))) for part in (queries, keys))
    return softmax(queries @ keys.mT / 2**0.5) @ values


def normalized(x):
    return rms_norm(x, np.ones(2), 1e-6)


def simplified(x):
    return LADDER["simplified"](x, {})


def spread(x):
    return np.ptp(x, axis=0).max()


def shown():
    """The numbers of each section that the example shows, in the order of the text."""
    _, steps, context = run_example(LADDER["trainable"])
    queries, keys, values = projected(X)
    lengths = np.linalg.norm(keys, axis=-1)
    best = (steps["scores"].argmax(-1) == lengths.argmax()).sum()
    largest = steps["scaled"].max()
    qk_norm = [(normalized(n * queries) @ normalized(n * keys).mT).max() / 2**0.5 for n in (1, 10)]
    assert np.allclose(*qk_norm, rtol=1e-4)
    once = X + simplified(X)
    plain = LADDER["trainable"](X[ORDER], BOOK)
    return {
        "x": [softmax((n * X) @ (n * X).mT)[1].max() for n in (1, 10)],
        "queries": [steps["scores"][0, 4], steps["scores"][4, 0]],
        "keys": [lengths[1], best],
        "values": [context[1, 0], values[:, 0].min(), values[:, 0].max()],
        "norm": [largest, 100 * largest, qk_norm[0]],
        "rotary": [abs(plain - context)[1].max(), abs(rotated(X[ORDER]) - rotated(X))[1].max()],
        "capped": [1, largest, np.tanh(largest)],
        "stream": [spread(X), spread(simplified(simplified(X))), spread(once + simplified(once))],
    }


def test_the_other_numbers_are_those_of_the_example():
    example = shown()
    assert {*example} == {name for name in WHY if WHY[name].report is None}
    for name, values in example.items():
        written = numbers(WHY[name].measured)
        rounded = [
            f"{value:.{len(number.partition('.')[2])}f}"
            for value, number in zip(values, written, strict=True)
        ]
        assert rounded == written, name


def test_reads_names_that_share_a_text():
    text = (
        "# Title\n\n## a, b\n\nProblem: P.\n\nWithout it: W.\n\nMeasured: 1. [report](docs/r.md)\n"
    )
    both = read(text)
    assert both["a"] == both["b"]
    assert both["a"].measured == "1."
    assert both["a"].report == "docs/r.md"


def test_reading_needs_no_other_package():
    code = "import headway.ladder.why, sys; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
