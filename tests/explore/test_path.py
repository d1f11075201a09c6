"""The complete path of a head on the page: every product, and the effect on the next token."""

import numpy as np
import pytest

import headway
from headway.explore import export
from headway.explore.notebook import show
from headway.explore.tracers import LadderTracer, ModelTracer, TraceRequest
from headway.hf.stored import StoredModel
from headway.ladder.rung import SENTENCE
from pages import opened, table, written

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "abcabd"
LAYER, HEAD = 1, 3  # of four heads, which read two heads of keys and values
PREFIX = f"blocks.{LAYER}.attention."


@pytest.fixture(scope="module")
def traced(modern):
    return ModelTracer(StoredModel.open(modern.path)).trace(TraceRequest(TEXT))


@pytest.fixture(scope="module")
def exported(traced, tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), *traced)


def test_every_step_is_a_tile_with_the_shapes_between(page, exported):
    opened(page, f"{exported}#layer={LAYER}&head={HEAD}")
    lanes = page.locator(".lane").evaluate_all(
        "all => all.map(lane => [...lane.querySelectorAll('.tile')].map(tile => tile.textContent))"
    )
    chains = [[role, f"{role}, normalized", f"{role}, rotated"] for role in ("queries", "keys")]
    assert lanes[:3] == [*chains, ["values"]]
    rest = ["scores", "scaled", "masked", "weights", "context", "output", "stream"]
    assert lanes[3][:-1] == rest
    assert lanes[3][-1].endswith("next token")
    shapes = page.locator(".lane").nth(3).locator(".shape").all_inner_texts()
    assert shapes == ["6×6", "6×6", "6×6", "6×6", "6×6", "6×6", "6×24", "6×24"]
    assert page.locator(".lane").nth(0).locator(".shape").all_inner_texts() == [
        "6×24",
        "6×6",
        "6×6",
    ]
    page.click(".tile:has-text('keys, normalized')")
    page.wait_for_selector("h2:has-text('keys, normalized')")


def test_the_numbers_of_the_path_are_the_engines(page, exported, traced):
    tensors, _ = traced
    group = HEAD // 2
    expected = {
        "x": tensors[f"blocks.{LAYER}.attention_norm"][0],
        "values": tensors[PREFIX + "values"][0, group],
        "stream": tensors[f"blocks.{LAYER}.after_attention"][0],
    }
    for kind in ("unnormalized_", "unrotated_", ""):
        expected[f"{kind}queries"] = tensors[f"{PREFIX}{kind}queries"][0, HEAD]
        expected[f"{kind}keys"] = tensors[f"{PREFIX}{kind}keys"][0, group]
    for step, numbers in expected.items():
        opened(page, f"{exported}#layer={LAYER}&head={HEAD}&step={step}&table=1")
        assert np.array_equal(table(page), numbers), step


def test_the_outputs_of_the_heads_add_up(page, exported, traced):
    tensors, _ = traced
    total = 0
    for head in range(4):
        opened(page, f"{exported}#layer={LAYER}&head={head}&step=output&table=1")
        total = total + table(page)
    np.testing.assert_allclose(total, tensors[PREFIX + "output"][0], rtol=1e-5, atol=1e-5)


def test_products_show_the_learned_matrix(page, exported):
    for step, matrix, shape in (
        ("unnormalized_queries", "W_query", "24 × 6"),
        ("unnormalized_keys", "W_key", "24 × 6"),
        ("values", "W_value", "24 × 6"),
        ("output", "W_output", "6 × 24"),
    ):
        opened(page, f"{exported}#layer={LAYER}&head={HEAD}&step={step}")
        assert page.inner_text(".product .above h3") == f"{matrix} {shape}"


def test_the_dials_show_the_angles_of_rotary_positions(page, exported):
    opened(page, f"{exported}#layer={LAYER}&head={HEAD}&step=queries")
    page.locator("svg.matrix").last.hover(position={"x": 20, "y": 70})  # row 3
    row = 3
    assert page.inner_text("h3:has-text('each pair') .token") == TEXT[row]
    angles = page.locator(".pairs figure").evaluate_all("all => all.map(x => +x.dataset.angle)")
    expected = np.degrees([row / 10000 ** (2 * i / 6) for i in range(3)])
    assert np.allclose((np.array(angles) - expected + 180) % 360 - 180, 0, atol=1e-3)


def test_the_next_token_is_in_view_on_every_level(page, exported, traced):
    logits = traced[0]["logits"][0, -1].astype(float)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    for state in (
        "",
        "layer=1",
        "layer=1&head=2",
        "layer=1&head=2&cell=3,1",
        "layer=0&head=0&step=next",
    ):
        opened(page, f"{exported}#{state}")
        shown = page.locator(".upcoming [data-value]").evaluate_all(
            "all => all.map(x => +x.dataset.value)"
        )
        np.testing.assert_allclose(shown, np.sort(shares)[::-1][:5], rtol=1e-6)


def test_the_path_of_a_rung(page, tmp_path):
    tensors, manifest = LadderTracer().trace(TraceRequest(SENTENCE))
    (tmp_path / "page.html").write_text(export.page(tensors, manifest))
    at = (tmp_path / "page.html").as_uri()
    opened(page, f"{at}#rung=stacked&head=1&step=queries")
    assert page.inner_text(".product .above h3") == "W_query 3 × 2"
    opened(page, f"{at}#rung=multihead&head=1&step=output&table=1")
    second = table(page)
    opened(page, f"{at}#rung=multihead&head=0&step=output&table=1")
    np.testing.assert_allclose(table(page) + second, tensors["ladder.multihead.output"], atol=1e-12)
    assert page.locator(".upcoming").count() == 0


def test_a_wide_factor_is_drawn_smaller_but_has_its_shape(page, tmp_path):
    queries = np.random.default_rng(0).normal(size=(1, 5, 60))
    with headway.trace() as steps:
        headway.attend(queries, queries, queries, causal=True, kernel="plain")
    show(steps, "a b c d e").save(tmp_path / "page.html")
    opened(page, f"{(tmp_path / 'page.html').as_uri()}#layer=0&head=0&step=scores")
    assert page.inner_text(".above h3") == "keysᵀ 60 × 5"
    assert page.inner_text(".beside h3") == "queries 5 × 60"
    assert page.locator(".beside svg > g").first.locator("rect").count() == 5 * 48
