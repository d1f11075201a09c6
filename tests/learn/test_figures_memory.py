"""The figure `memory`: addresses and strides are those of NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from figures import drawn, said
from headway.attention.formula import attention
from headway.attention.heads import merge
from headway.attention.masks import causal
from headway.attention.spec import Spec
from headway.ladder.rungs import LADDER
from headway.learn.guide import CHAPTERS

pytestmark = pytest.mark.xdist_group("browser")


def test_what_the_chapter_says():
    text = (CHAPTERS / "09_fused.md").read_text()
    products = [LADDER[name].products(4, 1) for name in ("stacked", "multihead", "fused")]
    assert (
        "With 4 heads these are {} in the loop, {} in `multihead` and {}".format(*products) in text
    )
    climb = json.loads((Path(__file__).parents[2] / "docs/lab/climb/report.json").read_text())
    speeds = {one["name"]: f"{one['tokens_per_second']:,.0f}" for one in climb["variants"]}
    assert (
        f"{speeds['stacked']} tokens per second, and with `multihead` {speeds['multihead']}" in text
    )


def blocks(page, view):
    """The addresses in the blocks of a view."""
    return page.locator(f"[data-view='{view}'] .cells").evaluate_all(
        "blocks => blocks.map(b => [...b.children].map(cell => Number(cell.dataset.address)))"
    )


@pytest.mark.parametrize(("tokens", "heads", "features"), [(3, 2, 2), (4, 3, 1), (1, 4, 2)])
def test_the_views_are_those_of_numpy(page, tokens, heads, features):
    q = torch.arange(tokens * heads * features).reshape(tokens, heads * features)
    views = {
        "q = x @ W_query": (q, False),
        f"q.view({tokens}, {heads}, {features})": (q.view(tokens, heads, features), False),
        f"q.view({tokens}, {heads}, {features}).transpose(0, 1)": (
            q.view(tokens, heads, features).transpose(0, 1),
            False,
        ),
        f"q.view({heads}, {tokens}, {features})": (q.view(heads, tokens, features), True),
    }
    for code, (view, broken) in views.items():
        sizes = {"tokens": tokens, "heads": heads, "features": features}
        drawn(page, "memory", sizes, broken=broken)
        shown = blocks(page, code)
        assert np.array_equal(np.ravel(shown), view.flatten())
        strides = f"shape {tuple(view.shape)}, strides {view.stride()}"
        assert strides in page.inner_text(f"[data-view='{code}'] h3")
        assert blocks(page, "memory") == [list(range(q.numel()))]


def test_an_address_is_followed(page):
    drawn(page, "memory", {"tokens": 3, "heads": 2, "features": 2})
    page.get_by_label("address").press("End")
    assert page.locator(".cell.lit").evaluate_all("cells => cells.map(c => c.dataset.address)") == [
        *["11"] * 4
    ]
    told = said(page)
    assert told["belongs to"] == "token 2, head 1, feature 1"
    assert told["found in q.view(3, 2, 2).transpose(0, 1) at"] == (
        "[1, 2, 1], because 1 · 2 + 2 · 4 + 1 · 1 = 11"
    )
    page.get_by_label("heads").press("Home")
    assert said(page)["number at address"] == "5"
    page.locator("[data-view=memory] .cell").first.hover()
    assert said(page)["number at address"] == page.get_by_label("address").input_value() == "0"


def test_the_view_without_a_transpose_mixes_and_leaks(page):
    tokens, heads, features = 3, 2, 2
    drawn(page, "memory", {"tokens": tokens, "heads": heads, "features": features}, broken=True)
    q = np.arange(tokens * heads * features)
    right = q.reshape(tokens, heads, features).swapaxes(0, 1)
    wrong = q.reshape(heads, tokens, features) // features != right // features
    told = said(page)["cells with a number of another token or head"]
    assert told == f"{wrong.sum()} of {q.size}"

    def first(x):
        parts = x.reshape(heads, tokens, features)
        return merge(attention(parts, parts, parts, Spec(mask=causal)))[0]

    x = np.random.default_rng(0).normal(size=(tokens, heads * features))
    later = x + np.array([[0.0], [1.0], [0.0]])
    assert not np.allclose(first(x), first(later))  # token 0 depends on token 1
