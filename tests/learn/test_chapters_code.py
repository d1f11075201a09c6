"""The Python blocks of the chapters run, and compute what the ladder computes."""

import re

import numpy as np
import pytest

from headway.attention.normalizers import softmax
from headway.ladder.rung import run_example, words_and_inputs
from headway.ladder.rungs import LADDER
from headway.ladder.stacked import TWO_HEADS
from headway.ladder.trainable import BOOK
from headway.learn.guide import CHAPTERS


def code(chapter):
    text = CHAPTERS.joinpath(f"{chapter}.md").read_text("utf-8")
    return "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def ran(chapter, **names):
    """The names after the block of a chapter."""
    names |= {"np": np, "softmax": softmax}
    exec(code(chapter), names)
    return names


def projected(x, matrices):
    return [x @ matrices[name] for name in ("W_query", "W_key", "W_value")]


def causal_attention(queries, keys, values):
    return ran("06_mask", queries=queries, keys=keys, values=values)["context"]


@pytest.fixture
def x():
    return words_and_inputs()[1]


def test_every_block_is_tested_here():
    having = {file.stem for file in CHAPTERS.glob("*.md") if code(file.stem)}
    assert having == {"01_bottleneck", "06_mask", "08_heads", "13_online", "15_bugs"}


def test_weights_by_distance(x):
    _, steps, context = run_example(LADDER["fixed"])
    got = ran("01_bottleneck", x=x)
    np.testing.assert_allclose(got["weights"], steps["weights"])
    np.testing.assert_allclose(got["context"], context)


def test_the_mask(x):
    _, _, context = run_example(LADDER["causal"])
    np.testing.assert_allclose(causal_attention(*projected(x, BOOK)), context)


def test_several_heads(x):
    _, _, context = run_example(LADDER["stacked"])
    got = ran("08_heads", x=x, heads=2, causal_attention=causal_attention, **TWO_HEADS)
    np.testing.assert_allclose(got["context"], context)


@pytest.mark.parametrize("block", [1, 4, 6])
def test_an_online_softmax(x, block):
    _, _, context = run_example(LADDER["causal"])
    queries, keys, values = projected(x, BOOK)
    state = {"m": -np.inf, "l": 0, "c": 0, "query": queries[-1]}
    for first in range(0, len(x), block):
        part = {"keys": keys[first : first + block], "values": values[first : first + block]}
        state = ran("13_online", **{**state, **part})
    np.testing.assert_allclose(state["c"] / state["l"], context[-1])


def test_the_test_for_leaks(x):
    difference = ran("15_bugs", x=x, attention=lambda x: causal_attention(*projected(x, BOOK)))[
        "difference"
    ]
    assert not difference[:5].any()
    assert difference[5].all()
