"""The figure `tiles`: its running numbers are those of attention/online.py."""

import json

import numpy as np
import pytest

from figures import called, drawn, said
from headway.attention import online
from headway.attention.grid import grid_of
from headway.attention.spec import Spec

pytestmark = pytest.mark.xdist_group("browser")
SCORES = [1.0, 2.0, 0.5, 1.5, 3.5, 0.0, 3.0, 5.0]
VALUES = [[1, 0], [0, 1], [1, 1], [2, 0], [0, 2], [1, 2], [2, 1], [3, 0]]
OPTIONS = {"scores": SCORES, "values": VALUES}


def states(scores, block):
    """The state after each block of keys: largest score, sum and context of the only query."""
    # A query of one feature, and keys that are the scores, with a scale of 1.
    queries, keys = np.ones((1, 1, 1)), np.array(scores)[None, :, None]
    values, spec = np.array(VALUES, float)[None], Spec(scale=1.0)
    grid = grid_of(queries, keys, spec)
    state, every = online.start(queries, values, spec, grid), []
    for first in range(0, len(scores), block):
        columns = slice(first, first + block)
        part = keys[:, columns], values[:, columns]
        state = online.with_block(state, queries, *part, spec, grid.select(columns=columns))
        every.append(state)
    return every


def softmax(scores):
    powers = np.exp(np.array(scores) - max(scores))
    return powers / powers.sum() @ np.array(VALUES)


def read_all(page):
    page.get_by_label("Read").focus()
    page.keyboard.press("End")


def rows(page):
    """The numbers of the rows of the running state, by their names."""
    return page.locator(".running tbody tr").evaluate_all(
        """all => all.map(row => [...row.querySelectorAll("td")].map(
            one => [one.dataset.name, one.dataset.value === undefined ? null : Number(one.dataset.value)]
        ))"""  # noqa: E501
    )


@pytest.mark.parametrize("block", [1, 2, 3, 8])
def test_the_states_are_those_of_the_online_softmax(page, block):
    drawn(page, "tiles", OPTIONS)
    page.get_by_label("Block size").fill(str(block))
    read_all(page)
    *blocks, last = rows(page)
    changed = page.locator(".running tbody tr").evaluate_all(
        "all => all.map(row => row.matches('.changed-row'))"
    )
    assert [changed[0], changed[-1]] == [False, False]
    expected = states(SCORES, block)
    assert len(blocks) == len(expected)
    for i, (row, state) in enumerate(zip(blocks, expected, strict=True)):
        got = dict(row[:3])
        assert got["m"] == state.largest.item()
        np.testing.assert_allclose(got["l"], state.total.item(), rtol=1e-12)
        np.testing.assert_allclose([x for _, x in row[3:]], state.context[0, 0], rtol=1e-12)
        if i:
            assert changed[i] == (expected[i - 1].largest < state.largest).item()
            shrink = np.exp(expected[i - 1].largest - state.largest).item()
            np.testing.assert_allclose(got["shrink"], shrink, rtol=1e-12)
    np.testing.assert_allclose([x for _, x in last[3:]], softmax(SCORES), rtol=1e-12)
    assert said(page)["difference of the context from that softmax"] == "0"


def test_a_score_can_be_changed(page):
    drawn(page, "tiles", OPTIONS)
    read_all(page)
    page.get_by_label("score of key 3").fill("7.5")
    changed = [*SCORES[:3], 7.5, *SCORES[4:]]
    np.testing.assert_allclose([x for _, x in rows(page)[-1][3:]], softmax(changed), rtol=1e-12)
    page.get_by_label("score of key 3").fill("")  # no number yet: nothing changes
    np.testing.assert_allclose([x for _, x in rows(page)[-1][3:]], softmax(changed), rtol=1e-12)


def test_without_the_rescaling_the_context_is_wrong_if_the_maximum_rises(page):
    drawn(page, "tiles", OPTIONS, broken=True)
    read_all(page)
    powers = np.exp([s - max(SCORES[: 2 * (i // 2) + 2]) for i, s in enumerate(SCORES)])
    wrong = powers / powers.sum()
    np.testing.assert_allclose([x for _, x in rows(page)[-1][3:]], wrong @ VALUES, rtol=1e-12)
    assert said(page)["difference of the context from that softmax"] != "0"
    # What chapter 13 says about the last key.
    right = np.exp(SCORES) / np.exp(SCORES).sum()
    assert [round(100 * weights[-1]) for weights in (right, wrong)] == [68, 23]
    assert (
        said(page)["weight of the last key"]
        == f"{wrong[-1]:.3g}, by the softmax over all keys {right[-1]:.3g}"
    )
    page.get_by_label("score of key 0").fill("6")
    assert said(page)["difference of the context from that softmax"] == "0"


def test_only_one_block_and_the_state_are_in_memory(page):
    drawn(page, "tiles", OPTIONS)
    page.get_by_label("Read").fill("3")
    assert said(page)["numbers in memory"] == f"2 scores and m, l, c: {2 + 2 + 2}"
    marked = page.locator(".keys-table th[aria-current]").all_inner_texts()
    assert marked == ["4", "5"]
    read = page.locator(".keys-table tbody tr").last.locator("td").all_inner_texts()
    assert (read.count("forgotten"), read.count("not read")) == (4, 2)


@pytest.mark.parametrize("power", [7, 12, 17])
def test_bytes(page, power):
    got = called(page, "tiles", "bytes", 2**power)
    queries = keys = np.zeros((1, 2**power, 64), np.float32)
    blocks = keys[:, : online.BLOCK]
    spec = Spec()
    state = online.start(queries, keys, spec, grid_of(queries[:, :1], keys[:, :1], spec))
    held = sum(part.nbytes for part in state)
    assert got["tiled"] == held + queries.shape[1] * blocks.shape[1] * 4
    assert got["matrix"] == queries.shape[1] * keys.shape[1] * 4
    drawn(page, "tiles", {"view": "memory"})
    page.get_by_label("Tokens").fill(str(power))
    sizes = page.locator(".number").evaluate_all("all => all.map(one => Number(one.dataset.value))")
    assert sizes == json.loads(json.dumps([got["matrix"], got["tiled"]]))
