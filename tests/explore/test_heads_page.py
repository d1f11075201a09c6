"""The views of all heads and of the logit lens: what they sort, and whose numbers they show."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

import headway
from headway.explore import export, tracers
from headway.explore.notebook import show
from headway.explore.tracers import ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel
from pages import opened, settled, table, written

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "it was the best of times, it was the worst"
NAMES = ["previous", "itself", "first", "induction", "entropy"]


@pytest.fixture(scope="module")
def traced(run):
    return WithLadder(ModelTracer(StoredModel.open(run.path))).trace(TraceRequest(TEXT, write=8))


@pytest.fixture(scope="module")
def exported(traced, tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), *traced)


def entries(manifest):
    """The label and the numbers of every head, in the order of the model."""
    return {
        f"{layer}.{index}": [head[name] for name in NAMES]
        for layer in (0, 1)
        for index, head in enumerate(manifest["heads"][f"blocks.{layer}.attention"]["heads"])
    }


def labels(page):
    return page.locator(".map .head span:not(.track):not(.fill)").all_inner_texts()


@pytest.mark.parametrize("name", NAMES)
def test_the_heads_are_sorted_by_what_is_chosen(page, exported, traced, name):
    heads = entries(traced[1])
    column = NAMES.index(name)
    order = sorted(heads, key=lambda label: -heads[label][column])
    assert order != list(heads)
    opened(page, f"{exported}#view=heads&sort={name}&table=1")
    assert labels(page) == order
    shown = page.locator(".map b").evaluate_all("all => all.map(one => +one.dataset.value)")
    assert shown == [heads[label][column] for label in order]
    assert page.locator("table.numbers tbody th").all_inner_texts() == order
    assert table(page).tolist() == [heads[label] for label in order]
    assert page.locator("th[aria-sort='descending']").count() == 1


def test_sorting_is_a_click_and_an_address(page, exported, traced):
    heads = entries(traced[1])
    opened(page, f"{exported}#view=heads&sort=position")
    assert labels(page) == list(heads)
    assert page.locator(".thumbnail").count() == 8
    page.get_by_role("link", name="entropy").click()
    settled(page)
    assert labels(page) == sorted(heads, key=lambda label: -heads[label][4])
    assert "view=heads&sort=entropy" in page.url
    page.get_by_role("button", name="numbers").click()
    settled(page)
    page.get_by_role("columnheader", name="first token").get_by_role("link").click()
    settled(page)
    first = sorted(heads, key=lambda label: -heads[label][2])
    assert labels(page) == first
    for address in ("sort=toString", "sort=", ""):
        opened(page, f"{exported}#view=heads&{address}")
        assert labels(page) == sorted(heads, key=lambda label: -heads[label][0])
    page.locator(".map .head").first.click()
    settled(page)
    layer, head = max(heads, key=lambda label: heads[label][0]).split(".")
    assert f"layer={layer}&head={head}" in page.url
    assert "view=" not in page.url


def test_a_head_shows_its_numbers(page, exported, traced):
    opened(page, f"{exported}#layer=1&head=2&step=weights")
    shown = page.locator("dl.measures dd").evaluate_all("all => all.map(dd => +dd.dataset.value)")
    assert shown == entries(traced[1])["1.2"]
    repeated = sum(letter in TEXT[:i] for i, letter in enumerate(TEXT))
    text = page.inner_text("aside")
    assert f"Means over all {len(TEXT)} queries. Induction: over the {repeated} whose" in text
    page.get_by_role("link", name="compare all heads").click()
    settled(page)
    assert labels(page)


def cells(page, row):
    return page.locator("table.lens tbody tr").nth(row).locator("td")


def test_the_last_row_of_the_lens_is_the_next_token(page, exported, traced):
    opened(page, exported)
    bars = page.locator(".next .bar")
    tokens = bars.locator("> .token").all_inner_texts()[:5]
    values = bars.locator(".number").evaluate_all("all => all.map(one => +one.dataset.value)")[:5]
    page.get_by_role("link", name="logit lens").click()
    settled(page)
    assert page.url.endswith("#view=lens")
    rows = page.locator("table.lens tbody th").all_inner_texts()
    assert rows == ["embedding", "Layer 0", "Layer 1 = output"]
    last = cells(page, 2).last
    token, share = last.inner_text().split("\n")
    assert token == tokens[0]
    assert float(share.removesuffix(" %")) == pytest.approx(100 * values[0], rel=0.05)
    assert float(last.get_attribute("data-value")) == pytest.approx(values[0], rel=1e-5)
    last.hover()
    panel = page.locator("dl.numbers")
    expect(panel.locator("dt")).to_have_text(["after", "next after", *tokens])
    assert panel.locator("dd").nth(1).inner_text() == f"t ({len(TEXT) - 1})"
    percents = [float(p.rstrip(" %")) for p in panel.locator("dd").all_inner_texts()[2:]]
    assert percents == pytest.approx([100 * value for value in values], rel=0.05)


def test_every_cell_of_the_lens_is_the_traces(page, exported, traced):
    tensors, manifest = traced
    opened(page, f"{exported}#view=lens&query=20")
    read = page.locator("table.lens thead th a").evaluate_all("all => all.map(a => a.title)")
    at = [int(re.search(r"\((\d+)\)$", title)[1]) for title in read]
    assert at == list(range(at[0], at[0] + len(at)))
    assert at[0] < 20 < at[-1]
    assert page.locator("th[aria-current='true'] a").get_attribute("title") == f"{TEXT[20]} (20)"
    for row in range(3):
        ids = cells(page, row).evaluate_all("all => all.map(td => +td.dataset.id)")
        assert ids == tensors["lens.tokens"][row, at, 0].tolist()
        shares = cells(page, row).evaluate_all("all => all.map(td => +td.dataset.value)")
        assert np.array_equal(np.float32(shares), tensors["lens.probabilities"][row, at, 0])
        right = cells(page, row).evaluate_all("all => all.map(td => td.className === 'right')")
        assert right == [i == manifest["tokens"][a + 1]["id"] for a, i in zip(at, ids, strict=True)]
    page.locator(".tokens li").nth(0).click()
    settled(page)
    assert page.locator("table.lens thead th a").first.get_attribute("title") == "i (0)"


def test_a_lens_of_the_last_positions_says_so(page, run, tmp_path, monkeypatch):
    monkeypatch.setattr("headway.explore.lens.MOST", 4 * 3 * 32 * 256)
    subject = ModelTracer(StoredModel.open(run.path))
    tensors, manifest = subject.trace(TraceRequest(TEXT))
    known = tensors["lens.tokens"].shape[1]
    assert known < 12
    (tmp_path / "page.html").write_text(export.page(tensors, manifest))
    opened(page, f"{(tmp_path / 'page.html').as_uri()}#view=lens&query=3")
    assert f"for the last {known} positions only" in page.inner_text(".picture")
    titles = page.locator("table.lens thead th a").evaluate_all("all => all.map(a => a.title)")
    first = len(TEXT) - known
    assert titles[0].endswith(f"({first})")
    ids = cells(page, 0).evaluate_all("all => all.map(td => +td.dataset.id)")
    assert ids == tensors["lens.tokens"][0, : len(ids), 0].tolist()


def test_hostile_tokens_stay_text(page, traced, tmp_path):
    tensors, manifest = traced
    hostile = "<img src=x onerror=alert(1)>"
    manifest = {**manifest, "vocabulary": [hostile] * len(manifest["vocabulary"])}
    manifest["tokens"] = [{**token, "display": hostile} for token in manifest["tokens"]]
    (tmp_path / "page.html").write_text(export.page(tensors, manifest))
    opened(page, f"{(tmp_path / 'page.html').as_uri()}#view=lens")
    assert cells(page, 0).first.inner_text().startswith("<img")
    assert page.locator("main img").count() == 0


def test_a_trace_has_the_heads_but_no_lens(page, tmp_path):
    queries = np.random.default_rng(0).normal(size=(3, 6, 4))
    with headway.trace() as steps:
        headway.attend(queries, queries, queries, causal=True)
    show(steps, "a b c d e f").save(tmp_path / "page.html")
    opened(page, f"{(tmp_path / 'page.html').as_uri()}#view=heads&sort=induction&table=1")
    assert page.get_by_role("link", name="logit lens").count() == 0
    assert labels(page) == ["0.0", "0.1", "0.2"]
    assert np.isnan(table(page)[:, 3]).all()
    assert page.locator(".map b").all_inner_texts() == ["–"] * 3
    # An address of a view that this trace does not have shows the layers.
    opened(page, f"{(tmp_path / 'page.html').as_uri()}#view=lens")
    assert page.locator(".band").count() == 1


def test_an_edit_changes_the_numbers(run):
    subject = ModelTracer(StoredModel.open(run.path))
    edit = tracers.Edit("previous", "blocks.0.attention", 1)
    _, manifest = subject.trace(TraceRequest(TEXT, edits=(edit,)))
    assert manifest["heads"]["blocks.0.attention"]["heads"][1]["previous"] == 1
