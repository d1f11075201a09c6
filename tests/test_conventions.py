"""docs/conventions.md says what the libraries do, and what Headway promises."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from conventions import (
    LIBRARIES,
    QUESTIONS,
    TORCH,
    Unknown,
    Way,
    cell,
    classify,
    mha,
    on_the_page,
    refusal,
)

HEADWAY = {
    "axes": "(batch, heads, tokens, dim)",
    "a boolean mask": "True = may attend",
    "a float mask": "error: use `bias`",
    "causal alone": "causal",
    "causal, fewer queries than keys": "bottom right",
    "causal, more queries than keys": "bottom right",
    "mask and causal": "both apply",
    "fully masked query (boolean mask): output": "0",
    "fully masked query (boolean mask): its gradients": "0",
    "fully masked query (boolean mask): gradients of the other queries": "correct",
    "fully masked query (bias of -inf): output": "0",
    "fully masked query (bias of -inf): its gradients": "0",
    "fully masked query (bias of -inf): gradients of the other queries": "correct",
    "query head h reads kv head": "h // (heads // kv_heads)",
    "a window of W": "W keys, up to itself",
    "a window of W and causal": "W keys, up to itself",
    "dropout requested, in `eval()`": "error (sdpa); drops (plain, JAX)",
}


@pytest.fixture(scope="module")
def measured():
    """In a process of its own: conftest's checks of types would refuse before Headway does."""
    return subprocess.run(
        [sys.executable, "-c", "import conventions; print(conventions.measured(), end='')"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.slow  # asks every library anew: half a minute
def test_the_page_says_what_was_measured(measured):
    _, part, _ = on_the_page()
    assert part == measured, "run `make docs`, and read what changed"


@pytest.mark.slow
def test_headway_keeps_its_promises(measured):
    table = [line.strip("| ").split(" | ") for line in measured.splitlines()[4:]]
    assert {row[0]: row[-1] for row in table} == HEADWAY


@pytest.mark.parametrize(
    "question",
    [
        "a boolean mask",
        "causal alone",
        "mask and causal",
        "fully masked query (boolean mask): output",
        "dropout requested, in `eval()`",
    ],
)
def test_need_weights_changes_nothing_on_the_fast_path(question):
    library = LIBRARIES["`nn.MultiheadAttention`"]
    with_weights, without = (
        library._replace(
            ways={"fast path": Way(TORCH, partial(mha, fast=True, need_weights=need_weights))}
        )
        for need_weights in (True, False)
    )
    assert cell(with_weights, QUESTIONS[question]) == cell(without, QUESTIONS[question])


def test_what_has_no_name_is_not_guessed():
    known = {"zeros": np.zeros(2), "ones": np.ones(2)}
    assert classify(np.ones(2), known) == "ones"
    with pytest.raises(Unknown, match="none of"):
        classify(np.array([0.0, 1.0]), known)
    with pytest.raises(Unknown, match=r"zeros.*nothing"):
        classify(np.zeros(2), {**known, "nothing": np.zeros(2)})
    with pytest.raises(Unknown, match="out of memory"):
        refusal(RuntimeError("out of memory"))
