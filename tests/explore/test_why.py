"""Why each step is there, on the page: the texts, and what changes on this text without it."""

import json

import numpy as np
import pytest
from playwright.sync_api import expect

import headway
from gpts import gpt_config
from headway.attention.positions import Rotary
from headway.explore import export
from headway.explore.notebook import show
from headway.explore.tracers import ModelTracer, TraceRequest
from headway.hf.stored import StoredModel
from headway.ladder.why import WHY
from pages import opened, written

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "abcabdac"
HEAD, GROUP, D_K = 3, 1, 6
PREFIX = "blocks.1.attention."


@pytest.fixture(scope="module")
def traced(modern):
    return ModelTracer(StoredModel.open(modern.path)).trace(TraceRequest(TEXT))


@pytest.fixture(scope="module")
def exported(traced, tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), *traced)


def softmax(scores, is_causal=True):
    if is_causal:
        scores = np.where(np.tri(len(scores), dtype=bool), scores, -np.inf)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def measures(weights):
    logs = np.log(np.where(weights > 0, weights, 1))
    entropy, gradient = -(weights * logs).sum(-1).mean(), (weights * (1 - weights)).sum(-1).mean()
    return entropy, gradient


def shown(page):
    """The numbers of the table, with the step and without it."""
    cells = page.locator("table.without tbody td").all_inner_texts()
    numbers = [float(cell.removesuffix(" %").replace("−", "-")) for cell in cells]
    return [tuple(numbers[i : i + 2]) for i in range(0, len(numbers), 2)]


def test_every_step_says_why(page, exported):
    opened(page, f"{exported}#layer=1&head={HEAD}")
    links = page.locator(".tile").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert len(links) == 16
    texts = []
    for link in links:
        opened(page, exported + link)
        texts.append(page.inner_text(".why p:first-of-type"))
    assert all(text in {why.problem for why in WHY.values()} for text in texts)
    assert len(set(texts)) == 14  # QK-norm and rotary positions twice each
    opened(page, f"{exported}#layer=1&head={HEAD}&step=scaled")
    assert WHY["scaled"].measured in page.inner_text(".why")
    assert WHY["scaled"].report in page.inner_text(".why code")


def test_the_consequences_are_those_of_the_formula(page, exported, traced):
    tensors = {name: x.astype(float) for name, x in traced[0].items()}
    at = {name: tensors[PREFIX + name][0] for name in ("queries", "keys", "scores", "scaled")}
    weights = tensors[PREFIX + "weights"][0, HEAD]
    positions = np.arange(len(TEXT))

    def rotated(name, head):
        return Rotary().rotate(tensors[f"{PREFIX}unnormalized_{name}"][0, head], positions)

    without_norm = rotated("queries", HEAD) @ rotated("keys", GROUP).T / D_K**0.5
    unrotated = [
        tensors[f"{PREFIX}unrotated_{name}"][0, head]
        for name, head in (("queries", HEAD), ("keys", GROUP))
    ]
    changed = {
        "scaled": softmax(at["scores"][HEAD]),
        "queries": softmax(unrotated[0] @ unrotated[1].T / D_K**0.5),
        "unrotated_keys": softmax(without_norm),
    }
    for step, expected in changed.items():
        opened(page, f"{exported}#layer=1&head={HEAD}&step={step}&without=1")
        numbers = shown(page)
        for result, pair in zip(
            numbers[:2], zip(measures(weights), measures(expected), strict=True), strict=True
        ):
            np.testing.assert_allclose(result, pair, rtol=6e-3)
        if step == "queries":
            previous = [100 * np.diag(w, -1).mean() for w in (weights, expected)]
        else:
            previous = [100 * w.max(-1).mean() for w in (weights, expected)]
        np.testing.assert_allclose(numbers[2], previous, rtol=1e-2)

    free = softmax(at["scaled"][HEAD], is_causal=False)
    later = np.triu(free, 1)
    query, key = np.unravel_index(later.argmax(), later.shape)
    opened(page, f"{exported}#layer=1&head={HEAD}&step=masked&without=1")
    cells = page.locator("table.without tbody td").all_inner_texts()
    assert cells[0] == "0.0 %"
    np.testing.assert_allclose(float(cells[1][:-2]), 100 * later.sum(-1).mean(), rtol=1e-2)
    assert cells[3].startswith(f"{TEXT[query]} reads the later token {TEXT[key]} with")
    assert f"{100 * later.max():.3g} %" in cells[3]

    opened(page, f"{exported}#layer=1&head={HEAD}&step=weights&without=1")
    cells = page.locator("table.without tbody td").all_inner_texts()
    allowed = np.tril(at["scaled"][HEAD])
    low, high = (float(x.replace("−", "-")) for x in cells[1].split(" to "))
    np.testing.assert_allclose(
        [low, high], [allowed.sum(-1).min(), allowed.sum(-1).max()], rtol=6e-3
    )
    assert cells[2:] == ["0", str((allowed < 0).sum())]
    opened(page, f"{exported}#layer=1&without=1")  # one head instead of several: the first
    one = tensors[PREFIX + "context"][0, 0, -1] @ tensors[PREFIX + "W_output"][0]
    lengths = [np.linalg.norm(x) for x in (tensors[PREFIX + "output"][0, -1], one)]
    np.testing.assert_allclose(shown(page), [lengths], rtol=6e-3)
    opened(page, f"{exported}#layer=1&head={HEAD}&step=output&without=1")
    assert page.locator("table.without tbody td").all_inner_texts() == ["24", "6 of 24"]


def test_the_button_shows_the_consequence_in_a_file(page, exported):
    opened(page, f"{exported}#layer=1&head={HEAD}&step=scaled")
    assert page.locator("table.without").count() == 0
    page.click("button:text-is('without it')")
    expect(page.locator("table.without")).to_be_visible()
    page.click("button:text-is('with it again')")
    expect(page.locator("table.without")).to_have_count(0)
    opened(page, f"{exported}#layer=1&head={HEAD}&step=x")
    assert page.locator("button:text-is('without it')").count() == 0  # nothing is computed


def test_the_texts_are_data_in_the_page():
    inside = export.shell().partition('id="why">')[2].partition("</script>")[0]
    assert "<" not in inside
    assert json.loads(inside)["scaled"]["problem"] == WHY["scaled"].problem


def test_later_tokens_of_queries_at_the_end(page, tmp_path):
    """Two queries after four keys: `offset` says which keys are later."""
    generator = np.random.default_rng(0)
    queries, keys = generator.normal(size=(1, 2, 4)), generator.normal(size=(1, 6, 4))
    with headway.trace() as steps:
        headway.attend(queries, keys, keys, causal=True, kernel="plain")
    show(steps, ["q4 q5", "k0 k1 k2 k3 k4 k5"]).save(tmp_path / "page.html")
    opened(page, f"{(tmp_path / 'page.html').as_uri()}#layer=0&head=0&step=masked&without=1")
    free = softmax(steps["scaled"][0], is_causal=False)
    cells = page.locator("table.without tbody td").all_inner_texts()
    np.testing.assert_allclose(float(cells[1][:-2]), 100 * free[0, 5] / 2, rtol=1e-2)
    assert cells[3].startswith("q4 reads the later token k5 with")


def test_a_position_bias_stays_without_the_scale(page, new_run, tmp_path):
    run = new_run(gpt_config(256, 12, 24, 1, 4, positions="alibi"))
    tensors, manifest = ModelTracer(StoredModel.open(run.path)).trace(TraceRequest(TEXT))
    names = ("scores", "scaled", "masked")
    steps = {n: tensors[f"blocks.0.attention.{n}"][0, 0].astype(float) for n in names}
    bias = np.where(np.isfinite(steps["masked"]), steps["masked"] - steps["scaled"], 0)
    opened(page, f"{written(tmp_path, tensors, manifest)}#layer=0&head=0&step=scaled&without=1")
    expected = measures(softmax(steps["scores"] + bias))
    np.testing.assert_allclose([after for _, after in shown(page)[:2]], expected, rtol=6e-3)
    assert not np.allclose(expected, measures(softmax(steps["scores"])), rtol=0.02)
