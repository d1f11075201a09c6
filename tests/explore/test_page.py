"""The page in a real browser: its numbers are the engine's, and it needs nothing but its file."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

import headway
from headway.explore import export, trace_file
from headway.explore.notebook import show
from headway.explore.subjects import Ask, BesideLadder, LadderSubject, RunSubject
from headway.models.gpt import MODERN, GPTConfig
from headway.parts.dropout import keep
from headway.parts.masks import Mask
from headway.torch import GPT
from headway.torch.gpt import multi_head
from pages import opened, table

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "it was the age"


@pytest.fixture(scope="module")
def traced(run):
    return BesideLadder(RunSubject(run)).trace(Ask(TEXT, write=8))


@pytest.fixture(scope="module")
def exported(traced, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(export.page(*traced))
    return file.as_uri()


@pytest.mark.parametrize("step", ["scores", "scaled", "masked", "weights", "context"])
def test_the_numbers_of_a_head_are_the_engines(page, exported, traced, step):
    opened(page, f"{exported}#layer=1&head=2&step={step}&table=1")
    assert np.array_equal(table(page), traced[0][f"blocks.1.attention.{step}"][0, 2])


def kinds():
    def model(**choices):
        options = choices.pop("options", {})
        torch.manual_seed(0)
        attention = partial(multi_head, attend=partial(headway.attend, **options))
        made = GPT(GPTConfig(11, 64, 24, 2, 4, **choices), attention).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return made

    odd = Mask(lambda batch, head, query, key: (key % 3 != 1) & (key < query + head))
    return {
        "gpt2": model(),
        "modern, grouped": model(kv_heads=2, **MODERN),
        "window, softcap, scale": model(options={"window": 3, "softcap": 4.0, "scale": 0.3}),
        "own mask, with dead rows": partial(model(), mask=odd),
        "bias": model(options={"bias": torch.linspace(-2, 2, 1)[:, None]}),
    }


@pytest.mark.parametrize("kind", kinds())
def test_what_is_recomputed_is_what_the_engine_computed(page, kind, tmp_path):
    of, tokens = kinds()[kind], torch.arange(60)[None] % 11
    run = lambda part: of(tokens[:, part])  # noqa: E731
    with torch.no_grad():
        lean, manifest = trace_file.record(run, 60, most=0)
        whole, _ = trace_file.record(run, 60)
    assert not any(name.endswith(("weights", "masked", "scores")) for name in lean)
    lean = {name: tensor for name, tensor in lean.items() if not name.endswith("context")}
    manifest |= {
        "kind": "trace",
        "title": "",
        "text": "",
        "tokens": [{"display": str(i)} for i in range(60)],
    }
    (tmp_path / "page.html").write_text(export.page(lean, manifest))
    at = (tmp_path / "page.html").as_uri()
    layer, window = "blocks.1.attention", slice(30, 54)
    for step in [name for name in ("masked", "weights", "context") if f"{layer}.{name}" in whole]:
        opened(page, f"{at}#layer=1&head=3&step={step}&table=1&at=30,30")
        assert "recomputed here" in page.inner_text("figcaption")
        engine = whole[f"{layer}.{step}"][0, 3, window]
        engine = engine if step == "context" else engine[:, window]
        assert engine.any()
        size = max(1, np.abs(engine[np.isfinite(engine)]).max())  # float32 rounds what is large
        np.testing.assert_allclose(table(page), engine, rtol=1e-5, atol=1e-6 * size)


def test_dropout_is_drawn_by_the_engines_hash(page, exported, traced):
    opened(page, f"{exported}#layer=0&head=3&step=dropped&training=7&table=1")
    size = len(TEXT)
    rate, heads = 0.1, np.arange(4, dtype=np.int32)[:, None, None]  # the recipe's rate
    rows, columns = (np.arange(size, dtype=np.int32) for _ in range(2))
    batch = np.zeros((1, 1, 1), dtype=np.int32)
    like = np.zeros(1)
    kept = keep(rate, 7, batch, heads, rows[:, None], columns, like=like)[3]
    weights = traced[0]["blocks.0.attention.weights"][0, 3].astype(float)
    np.testing.assert_allclose(table(page), np.where(kept, weights / (1 - rate), 0), rtol=1e-12)
    assert "p = 0.1, seed 7" in page.inner_text("aside")


def test_a_cell_is_written_out(page, exported, traced):
    opened(page, f"{exported}#layer=1&head=0&step=weights&cell=6,4")
    steps = {
        name: traced[0][f"blocks.1.attention.{name}"][0, 0, 6]
        for name in ("scores", "scaled", "masked", "weights")
    }
    shown = page.locator("dl.exact dd").evaluate_all(
        "all => Object.fromEntries(all.map(dd => [dd.dataset.step, Number(dd.dataset.value)]))"
    )
    assert shown == {name: float(row[4]) for name, row in steps.items()}
    total = page.locator("strong[data-sum]")
    q, k = (traced[0][f"blocks.1.attention.{n}"][0, 0].astype(float) for n in ("queries", "keys"))
    assert float(total.get_attribute("data-sum")) == pytest.approx(q[6] @ k[4], rel=1e-12)
    assert "score[·, a] =" in page.inner_text("main")


def test_the_next_token_at_any_temperature(page, exported, traced):
    opened(page, f"{exported}#temperature=0.5&top_k=5&query=3")
    logits = traced[0]["logits"][0, 3].astype(float) / 0.5
    top = np.sort(logits)[-5:]
    shares = np.exp(np.sort(logits)[::-1][:5] - top.max()) / np.exp(top - top.max()).sum()
    shown = page.locator(".next .number").evaluate_all(
        "all => all.map(x => Number(x.dataset.value))"
    )
    np.testing.assert_allclose(shown[:5], shares, rtol=1e-6)
    assert all(share == 0 for share in shown[5:])
    marked = page.inner_text(".next .bar[aria-current] .token")
    assert marked == TEXT[4].replace(" ", "·")


def test_playing_and_stepping_by_the_keyboard(page, exported):
    opened(page, f"{exported}#layer=0&head=1")
    step, keyboard = page.locator(".tile[aria-current]"), page.keyboard
    for name in ("scores", "scaled", "masked", "weights", "context"):
        expect(step).to_have_text(name)
        keyboard.press("ArrowRight")
    keyboard.press("ArrowLeft")
    expect(step).to_have_text("weights")
    keyboard.press("Space")  # plays
    expect(step).to_have_text("context")
    keyboard.press("Space")
    keyboard.press("]")
    expect(page.locator(".crumbs")).to_contain_text("Head 2")
    page.keyboard.press("Escape")
    page.wait_for_selector(".flow")
    page.keyboard.press("Escape")
    page.wait_for_selector(".model")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").is_visible()


def test_a_cell_is_reached_without_a_mouse(page, exported, traced):
    opened(page, f"{exported}#layer=1&head=2&step=weights")
    page.locator("svg.matrix[tabindex]").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    said = page.inner_text("dl.numbers")
    weight = traced[0]["blocks.1.attention.weights"][0, 2, 2, 1]
    assert f"weights\n{weight!s}" in said  # NumPy too prints the digits that a float32 has
    page.keyboard.press("Enter")
    expect(page.locator("dl.exact")).to_be_visible()
    assert "softmax of its row" in page.inner_text("main")


def test_pointing_at_a_token_lights_it_everywhere(page, exported):
    opened(page, f"{exported}#layer=1&head=2&step=weights")
    page.hover(".tokens [data-token='3']")
    lit = page.locator(".lit-token").evaluate_all("all => all.map(x => x.dataset.token)")
    assert len(lit) >= 3
    assert set(lit) == {"3"}


def test_every_address_comes_back(page, exported):
    for state in (
        "",
        "layer=1",
        "layer=1&tensor=blocks.1.mlp.hidden",
        "ladder=1&rung=causal&diff=1",
    ):
        opened(page, f"{exported}#{state}")
        before = page.inner_text("nav"), page.locator("main *").count()
        page.reload()
        opened(page, f"{exported}#{state}")
        assert (page.inner_text("nav"), page.locator("main *").count()) == before


@pytest.mark.parametrize(
    "address",
    [
        "layer=99",
        "layer=0&head=77",
        "step=nonsense&layer=0&head=0",
        "layer=0&head=0&cell=999,999",
        "tensor=nothing&layer=0",
        "query=5000",
        "at=9999,9999&layer=0&head=0",
        "rung=casual",
        "edit=bad",
        "temperature=-4",
        "layer=1e9",
        "%00=%ff&text=%ed%a0%80",
    ],
)
def test_an_address_with_nonsense_still_shows_something(page, exported, address):
    opened(page, f"{exported}#{address}")
    assert page.locator("main h2, main h3").count() > 0
    assert page.locator(".error").count() == 0


def test_the_ladder_has_the_rungs_own_numbers(page, tmp_path):
    tensors, manifest = LadderSubject().trace(Ask("Your journey starts with one step"))
    (tmp_path / "ladder.html").write_text(export.page(tensors, manifest))
    at = (tmp_path / "ladder.html").as_uri()
    opened(page, at)
    assert page.locator(".rung").count() == 9
    brought = page.locator(".rung").evaluate_all(
        """all => all.map(rung =>
            [...rung.querySelectorAll('.chips .new')].map(chip => chip.textContent))"""
    )
    assert brought[2:8] == [
        ["queries", "keys", "values", "scaled"],
        ["masked"],
        ["dropped"],
        ["2 heads"],
        ["output"],
        ["W_qkv"],
    ]
    opened(page, f"{at}#rung=stacked&head=1&step=weights&table=1")
    assert np.array_equal(table(page), tensors["ladder.stacked.heads.1.weights"][0])
    opened(page, f"{at}#rung=tiled&head=1&step=weights&table=1")
    np.testing.assert_allclose(table(page), tensors["ladder.fused.weights"][1], atol=1e-12)
    opened(page, f"{at}#rung=fixed&head=0&step=scores&table=1")
    assert np.array_equal(table(page), tensors["ladder.fixed.scores"])


NASTY = [
    "</script><img/src=x/onerror=fired()>",
    "\"'`<b>${fired()}</b>",
    "\u202egnp.exe",
    "a\u2028b",
    "\ud800",
    "<!--",
    "]]>",
    "javascript:fired()",
    "\x00\x1b[31m",
]


def test_no_token_or_name_becomes_a_script(page, run, tmp_path):
    named = tmp_path / "<img src=x onerror=fired()>&quot;'\u202e"
    named.symlink_to(run.path)
    pages = [
        LadderSubject().trace(Ask(" ".join(NASTY))),
        BesideLadder(RunSubject(type(run)(named))).trace(Ask("".join(NASTY[:4]), write=2)),
    ]
    for at, (tensors, manifest) in enumerate(pages):
        file = tmp_path / f"{at}.html"
        file.write_text(export.page(tensors, manifest))
        assert "fired" not in file.read_text()  # all of it is in base64
        page.add_init_script(
            "window.times = 0; window.alert = window.fired = () => { window.times += 1; }"
        )
        for state in (
            "",
            "#layer=0&head=0&step=weights&table=1",
            "#layer=0&head=0&cell=1,1",
            "#lines=1&layer=0&head=0",
            "#rung=causal&head=0&table=1",
            "#text=<img src=x onerror=fired()>",
            "#rung=<img src=x onerror=fired()>",
            "#layer=0&tensor=<script>fired()</script>",
            "#edit=<img src=x onerror=fired()>|<b>|0",
        ):
            opened(page, f"{file.as_uri()}{state}")
            assert page.evaluate("window.times") == 0
            assert page.locator("main img, header img, .tokens img, b").count() == 0
    opened(page, (tmp_path / "0.html").as_uri())
    shown = page.locator(".tokens .token").all_inner_texts()
    assert shown[0] == NASTY[0]
    assert shown[2] == "\\u202egnp.exe"


def test_the_file_works_with_the_network_off(browser, exported):
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, f"{exported}#layer=1&head=2&step=weights")
    assert page.locator("svg.matrix rect").count() > 50
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert page.locator("#text").is_disabled()
    assert "headway explore tiny" in page.inner_text("aside")
    context.close()


def test_nothing_leaves_a_file_even_if_a_script_wanted_to(page, exported):
    opened(page, exported)
    assert (
        page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'went', () => 'refused')")
        == "refused"
    )
    policy = page.get_attribute("meta[http-equiv]", "content")
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_a_trace_or_a_run_in_a_notebook_is_the_page(page, run):
    queries = torch.randn(1, 2, 5, 4)
    with headway.trace() as steps:
        headway.attend(queries, queries, queries, causal=True, kernel="plain")
    page.set_content(show(steps, "one two three four five")._repr_html_())
    frame = page.frame_locator("iframe")
    frame.locator("main canvas").first.wait_for()
    frame.locator(".band a.head").last.click()
    frame.locator(".tile").first.wait_for()
    assert frame.locator("svg.matrix text.label").first.text_content().endswith("one")
    page.set_content(show(run, TEXT)._repr_html_())
    expect(frame.locator(".tokens .token")).to_have_count(len(TEXT))
    with pytest.raises(ValueError, match="5 tokens, the text 2"):
        show(steps, "one two")
    with headway.trace() as empty:
        headway.tap("x", queries)
    with pytest.raises(ValueError, match="no attention of one shape was traced"):
        show(empty)


@pytest.mark.parametrize(
    "state",
    [
        "",
        "layer=1",
        "layer=1&head=1&step=scores",
        "layer=1&head=1&step=context",
        "layer=0&head=0&cell=3,1",
        "ladder=1",
    ],
)
def test_a_phone_is_wide_enough(page, exported, state):
    page.set_viewport_size({"width": 390, "height": 800})
    opened(page, f"{exported}#{state}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_is_too_large_is_refused_with_advice(traced, monkeypatch):
    monkeypatch.setattr(export, "MOST", 1000)
    with pytest.raises(ValueError, match="give a shorter text, or leave --html out"):
        export.page(*traced)


def test_much_is_spared_in_order(traced, monkeypatch):
    tensors, manifest = traced
    whole, about = export.spared(tensors, manifest)
    assert whole.keys() == tensors.keys()
    assert about["left_out"] == []
    monkeypatch.setattr(export, "AIM", 0)
    monkeypatch.setattr(export, "LOGITS", 2 * tensors["logits"][0, 0].nbytes)
    lean, about = export.spared(tensors, manifest)
    assert lean["logits"].shape == (1, 2, tensors["logits"].shape[-1])
    assert set(about["left_out"]) == tensors.keys() - lean.keys()
    assert "blocks.1.attention.queries" in lean
    assert "blocks.1.attention.weights" not in lean
    assert "blocks.1.after_mlp" not in lean
    assert json.loads(json.dumps(about))["steps"] == manifest["steps"]


def test_a_lean_file_still_shows_every_level(page, traced, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "AIM", 0)
    (tmp_path / "lean.html").write_text(export.page(*traced))
    for state, shown in {
        "": ".band",
        "layer=1": ".flow",
        "layer=1&head=1": ".tile",
        "layer=0&head=0&cell=3,1": ".sum",
    }.items():
        opened(page, f"{(tmp_path / 'lean.html').as_uri()}#{state}")
        assert page.locator(shown).count() > 0
    opened(page, f"{(tmp_path / 'lean.html').as_uri()}#layer=1")
    assert "left out of this file" in page.inner_text("main")
