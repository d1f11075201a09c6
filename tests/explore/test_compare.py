"""Two models, or a model before and after an edit, side by side on the page."""

import numpy as np
import pytest
from playwright.sync_api import expect

import headway
from headway.explore.tracers import Compared, ModelTracer, TraceRequest
from headway.hf.stored import StoredModel
from pages import opened, served, settled, written

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "it was the age"


@pytest.fixture(scope="module")
def other(run):
    """A run with fewer layers and steps, on the same text."""
    sizes = {"context": 80, "width": 32, "layers": 1, "heads": 4, "steps": 3, "batch": 4}
    names = {"name": "other", "runs": str(run.path.parent), "tokenizer": "byte"}
    return headway.train(str(run.path.parent / "text.txt"), **names, **sizes)


@pytest.fixture(scope="module")
def compared(run, other):
    return Compared(*(ModelTracer(StoredModel.open(one.path)) for one in (run, other)))


def hovered(page, place, row, column):
    """The values in the strip when the pointer is on a cell of a picture."""
    picture = page.locator(f".compared svg.matrix >> nth={place}")
    box = picture.locator("g").first.locator("rect").nth(row * len(TEXT) + column).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    return [
        float(text.replace("−", "-"))
        for text in page.locator("dl.numbers dd").all_inner_texts()[2:]
    ]


def shares(logits):
    exponentials = np.exp(logits.astype(float) - logits.max())
    return exponentials / exponentials.sum()


def strip(page, vocabulary):
    """The percentages before and after in the line of the next token, by the token's id."""
    texts = page.locator(".upcoming li").evaluate_all(
        """all => all.map(li => ['.token', 's', '[data-value]'].map(
            one => li.querySelector(one).textContent))"""
    )
    return {
        vocabulary.index(token): tuple(round(float(x.strip(" →%")), 1) for x in numbers)
        for token, *numbers in texts
    }


def test_the_request_says_which_model(compared, run):
    tensors, manifest = compared.trace(TraceRequest(TEXT))
    others, second = compared.trace(TraceRequest(TEXT, other=True))
    assert (manifest["title"], manifest["other"], second["title"]) == ("tiny", "other", "other")
    assert "blocks.1.attention.weights" in tensors
    assert "blocks.1.attention.weights" not in others
    alone, _ = ModelTracer(StoredModel.open(run.path)).trace(TraceRequest(TEXT))
    assert all(np.array_equal(tensors[name], alone[name]) for name in alone)


def test_models_with_other_tokens_are_refused(compared, tmp_path):
    names = {"name": "words", "runs": str(tmp_path), "tokenizer": "char"}
    sizes = {"context": 80, "width": 8, "layers": 1, "heads": 1, "steps": 1, "batch": 1}
    (tmp_path / "text.txt").write_text("it was the age of wisdom. " * 30)
    chars = headway.train(str(tmp_path / "text.txt"), **names, **sizes)
    different = Compared(compared.tracer, ModelTracer(StoredModel.open(chars.path)))
    with pytest.raises(ValueError, match=r"the tokens differ \(14 of tiny, 14 of words\)"):
        different.trace(TraceRequest(TEXT))


def test_two_models_in_one_file(page, compared, tmp_path):
    trace, base = (compared.trace(TraceRequest(TEXT, other=other)) for other in (False, True))
    at = written(tmp_path, *trace, base=base)
    opened(page, f"{at}#layer=0&head=3&step=weights&diff=1")
    assert page.locator(".compared h3").all_inner_texts() == ["other", "tiny", "difference"]
    before, now = (tensors["blocks.0.attention.weights"][0, 3] for tensors, _ in (base, trace))
    for place in range(3):
        shown = hovered(page, place, 9, 4)
        np.testing.assert_allclose(
            shown, [before[9, 4], now[9, 4], now[9, 4] - before[9, 4]], rtol=1e-5
        )
    assert "other → tiny" in page.inner_text(".upcoming")
    most, old = (shares(tensors["logits"][0, -1]) for tensors, _ in (trace, base))
    assert strip(page, trace[1]["vocabulary"]) == {
        int(i): (round(100 * old[i], 1), round(100 * most[i], 1))
        for i in {*np.argsort(-most)[:5], *np.argsort(-old)[:5]}
    }
    opened(page, f"{at}#layer=1&head=0&step=weights&diff=1")
    assert "other has no weights in this head" in page.inner_text(".focus")
    opened(page, f"{at}#layer=0&tensor=blocks.0.after_mlp&diff=1")
    assert page.locator(".compared svg.matrix").count() == 3


def test_before_and_after_an_edit(page, compared, tmp_path):
    running, thread, at = served(compared, TraceRequest(TEXT), tmp_path)
    try:
        opened(page, f"{at}#layer=0&head=1&step=weights")
        page.click("button:text-is('side by side')")
        with page.expect_download() as download:
            page.click("button:text-is('save as HTML')")
        download.value.save_as(tmp_path / "both.html")
        expect(page.locator(".compared h3").first).to_have_text("other")
        page.locator(".choices select").select_option("uniform")
        expect(page.locator(".compared h3").first).to_have_text("before the edit")
        settled(page)
        before = compared.trace(TraceRequest(TEXT))[0]["blocks.0.attention.weights"][0, 1, 7, 2]
        np.testing.assert_allclose(
            hovered(page, 1, 7, 2), [before, 1 / 8, 1 / 8 - before], rtol=1e-5
        )
        with page.expect_download() as download:
            page.click("button:text-is('save as HTML')")
        download.value.save_as(tmp_path / "saved.html")
    finally:
        running.should_exit = True
        thread.join()
    opened(page, (tmp_path / "both.html").as_uri())
    assert page.locator(".compared h3").all_inner_texts()[:2] == ["other", "tiny"]
    opened(page, (tmp_path / "saved.html").as_uri())
    assert page.locator(".compared h3").first.inner_text() == "before the edit"
    np.testing.assert_allclose(hovered(page, 0, 7, 2)[0], before, rtol=1e-5)
    assert "before the edit → after the edit" in page.inner_text(".upcoming")


def test_models_of_different_sizes(page, compared, run, tmp_path):
    sizes = {"context": 80, "width": 24, "layers": 2, "heads": 2, "steps": 1, "batch": 2}
    names = {"name": "small", "runs": str(run.path.parent), "tokenizer": "byte"}
    small = headway.train(str(run.path.parent / "text.txt"), **names, **sizes)
    trace = compared.tracer.trace(TraceRequest(TEXT))
    base = ModelTracer(StoredModel.open(small.path)).trace(TraceRequest(TEXT))
    at = written(tmp_path, *trace, base=base)
    opened(page, at)
    assert "NaN" not in page.inner_text("body")
    opened(page, f"{at}#layer=0&tensor=blocks.0.after_mlp&diff=1")
    assert page.locator(".compared").count() == 0
    opened(page, f"{at}#layer=0&head=3&step=weights&diff=1")
    assert "small has no weights in this head" in page.inner_text(".focus")
    opened(page, f"{at}#layer=0&head=1&step=queries&diff=1")
    assert "The shapes differ" in page.inner_text(".focus")
